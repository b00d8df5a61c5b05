using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Cli.Reporting;

/// <summary>Pictures of a layer with tokens from left to right and heads from top to bottom: fused scores, and what was kept.</summary>
internal static class TokenMap
{
    private const int MostColumns = 900, Frame = 96;

    // A share of the scores at either end gets the colour of the end, or a few outliers would leave one colour for all others.
    private const double Clipped = 0.01;

    public static Picture Scores(CompressedLayer layer, string name, string title)
    {
        var shape = layer.Layer.Shape;
        var scores = layer.Selection.Scores!;
        float[] finite = [.. scores.ToArray().Where(float.IsFinite).Order()];
        var grid = Binned(shape.Tokens, shape.KvHeads, scores, bin =>
        {
            double highest = double.NegativeInfinity;
            foreach (float score in bin)
                highest = Math.Max(highest, score);
            // What is protected scores +inf, and has no colour on the scale.
            return double.IsFinite(highest) ? highest : double.NaN;
        });
        var plot = NewMap(title, layer, grid, out var heatmap);
        heatmap.Colormap = new ScottPlot.Colormaps.Viridis();
        heatmap.NaNCellColor = Picture.Light;
        if (finite.Length > 0)
        {
            double low = finite[(int)(Clipped * (finite.Length - 1))], high = finite[(int)((1 - Clipped) * (finite.Length - 1))];
            heatmap.ManualRange = new ScottPlot.Range(low, Math.Max(high, low + 1e-6));
            var bar = plot.Add.ColorBar(heatmap);
            bar.Label = "fused score (z)";
            bar.LabelStyle.FontSize = 13;
            bar.LabelStyle.Bold = false;
            bar.Axis.TickLabelStyle.FontSize = 13;
        }
        string each = Each(grid, shape.Tokens, "the highest score");
        return Picture.Render(plot, name, $"Heat map of fused scores, {shape.Tokens} tokens by {shape.KvHeads} heads{each}; grey cells are always kept.", Height(shape.KvHeads));
    }

    public static Picture Kept(CompressedLayer layer, string name, string title)
    {
        var shape = layer.Layer.Shape;
        var kept = new float[shape.Tokens * shape.KvHeads];
        var indices = layer.Selection.KeptIndices;
        var offsets = layer.Selection.KeptOffsets;
        for (int segment = 0; segment + 1 < offsets.Length; segment++)
            foreach (int token in indices[offsets[segment]..offsets[segment + 1]])
                kept[(shape.CuSeqlens[segment / shape.KvHeads] + token) * shape.KvHeads + segment % shape.KvHeads] = 1;
        var grid = Binned(shape.Tokens, shape.KvHeads, kept, bin =>
        {
            double sum = 0;
            foreach (float x in bin)
                sum += x;
            return sum / bin.Length;
        });
        var plot = NewMap(title, layer, grid, out var heatmap);
        heatmap.Colormap = new ScottPlot.Colormaps.CustomInterpolated([Picture.Light, Picture.Blue]);
        heatmap.ManualRange = new ScottPlot.Range(0, 1);
        plot.Legend.ManualItems.AddRange([Picture.Swatch("kept", Picture.Blue), Picture.Swatch("evicted", Picture.Light)]);
        Picture.Legend(plot);
        string each = Each(grid, shape.Tokens, "the share kept");
        return Picture.Render(plot, name,
            $"Map of kept and evicted tokens, {shape.Tokens} tokens by {shape.KvHeads} heads{each}: {layer.Report.Plan.KeptPairs} of {layer.Report.Pairs} are kept.", Height(shape.KvHeads));
    }

    private static int Height(int heads) => Frame + heads * Math.Clamp(400 / heads, 12, 44);

    private static string Each(double[,] grid, int tokens, string what) =>
        grid.GetLength(1) < tokens ? $", {(tokens + grid.GetLength(1) - 1) / grid.GetLength(1)} tokens a column ({what})" : "";

    private delegate double Combine(ReadOnlySpan<float> bin);

    /// <summary><c>[heads, columns]</c> of a <c>[tokens, heads]</c> array, with as many tokens to a column as a picture has room for.</summary>
    private static double[,] Binned(int tokens, int heads, ReadOnlySpan<float> values, Combine combine)
    {
        int each = Math.Max(1, (tokens + MostColumns - 1) / MostColumns), columns = (tokens + each - 1) / each;
        var grid = new double[heads, columns];
        var bin = new float[each];
        for (int column = 0; column < columns; column++)
            for (int head = 0; head < heads; head++)
            {
                int count = Math.Min(each, tokens - column * each);
                for (int i = 0; i < count; i++)
                    bin[i] = values[(column * each + i) * heads + head];
                grid[head, column] = combine(bin.AsSpan(0, count));
            }
        return grid;
    }

    private static Plot NewMap(string title, CompressedLayer layer, double[,] grid, out ScottPlot.Plottables.Heatmap heatmap)
    {
        var shape = layer.Layer.Shape;
        var plot = Picture.NewPlot(title, shape.Sequences == 1 ? "token" : $"token ({shape.Sequences} sequences, end to end)", "KV head");
        int heads = shape.KvHeads, columns = grid.GetLength(1), each = (shape.Tokens + columns - 1) / columns;
        heatmap = plot.Add.Heatmap(grid);
        // Cells are one unit wide and high around whole numbers.
        const double half = 0.5;
        plot.Axes.SetLimits(-half, columns - half, -half, heads - half);
        plot.HideGrid();
        for (int b = 1; b < shape.Sequences; b++)
            plot.Add.VerticalLine((double)shape.CuSeqlens[b] / each - half, 1, Picture.Orange);
        for (int head = 1; head < heads; head++)
            plot.Add.HorizontalLine(head - half, 1, Colors.White);
        plot.Axes.Bottom.TickGenerator = new NumericAutomatic { LabelFormatter = column => $"{column * each:0}", IntegerTicksOnly = true };
        int step = Math.Max(1, heads / 16);
        int[] labelled = [.. Enumerable.Range(0, heads).Where(head => head % step == 0)];
        plot.Axes.Left.TickGenerator = new NumericManual([.. labelled.Select(head => heads - 1.0 - head)], [.. labelled.Select(head => $"{head}")]);
        return plot;
    }
}
