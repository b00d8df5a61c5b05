using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Cli.Reporting;

/// <summary>Tokens each head of each layer keeps, within the slots of the blocks they take.</summary>
internal static class LengthsPicture
{
    private const int Height = 340, MostWords = 12, MostLabels = 48;

    public static Picture Draw(IReadOnlyList<LayerReport> layers, string name, string title)
    {
        int tokens = layers[0].Plan.Shape.Tokens;
        int bars = layers.Sum(layer => layer.Plan.Shape.KvHeads);
        bool sequences = layers[0].Plan.Shape.Sequences > 1;
        var plot = Picture.NewPlot(title, bars is > MostWords and <= MostLabels ? "layer (in the bars: KV head)" : "layer", sequences ? "tokens of all sequences" : "tokens");
        var (slots, kept) = (new List<Bar>(), new List<Bar>());
        var (middles, names) = (new List<double>(), new List<string>());
        double x = 0;
        foreach (var layer in layers)
        {
            double first = x;
            int heads = layer.Plan.Shape.KvHeads;
            for (int head = 0; head < heads; head++, x++)
            {
                int[] lengths = [.. layer.KeptLengths.Where((_, segment) => segment % heads == head)];
                long taken = lengths.Sum(length => ((long)length + layer.Blocks.BlockSize - 1) / layer.Blocks.BlockSize * layer.Blocks.BlockSize);
                slots.Add(new Bar { Position = x, Value = taken, FillColor = Picture.Light, LineWidth = 0, Size = 0.86 });
                kept.Add(new Bar { Position = x, Value = lengths.Sum(), FillColor = Picture.Blue, LineWidth = 0, Size = 0.86 });
                if (bars <= MostLabels)
                {
                    var label = plot.Add.Text(bars <= MostWords ? $"head {head}" : $"{head}", x, 0);
                    (label.LabelFontColor, label.LabelFontSize, label.LabelAlignment, label.OffsetY) = (Colors.White, 12, Alignment.LowerCenter, -3);
                }
            }
            middles.Add((first + x - 1) / 2);
            names.Add(layer.Number ?? "0");
            x += Math.Max(0.6, 0.15 * heads);
        }
        plot.Add.Bars(slots);
        plot.Add.Bars(kept);
        foreach (var text in plot.GetPlottables<ScottPlot.Plottables.Text>().ToArray())
            plot.MoveToTop(text);
        plot.Add.HorizontalLine(tokens, 1.2f, Picture.Dark, LinePattern.Dotted);
        double top = Math.Max(Math.Max(1, tokens), slots.Max(bar => bar.Value));
        plot.Axes.SetLimits(-0.8, kept[^1].Position + 0.8, 0, 1.06 * top);
        int step = Math.Max(1, names.Count / 16);
        plot.Axes.Bottom.TickGenerator = new NumericManual([.. middles.Where((_, i) => i % step == 0)], [.. names.Where((_, i) => i % step == 0)]);
        plot.Axes.Left.TickGenerator = new NumericAutomatic { LabelFormatter = value => Units.Count((long)value), IntegerTicksOnly = true };
        plot.Grid.XAxisStyle.IsVisible = false;
        plot.Legend.ManualItems.AddRange([Picture.Swatch("kept tokens", Picture.Blue), Picture.Swatch("unused slots", Picture.Light),
            new LegendItem { LabelText = "all tokens", LineColor = Picture.Dark, LinePattern = LinePattern.Dotted, LineWidth = 1.2f }]);
        Picture.Legend(plot);
        int[] all = [.. layers.SelectMany(layer => layer.KeptLengths)];
        return Picture.Render(plot, name, $"Bars of the tokens each head of each layer keeps, from {all.Min()} to {all.Max()} of a sequence, within the slots of the blocks they take.", Height);
    }
}
