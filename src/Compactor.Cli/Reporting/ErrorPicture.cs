using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Cli.Reporting;

/// <summary>Output error of each policy against what is kept.</summary>
internal static class ErrorPicture
{
    private const int Height = 400;

    /// <summary>The policies in the order they are told, with what people call them.</summary>
    public static readonly (string Policy, string Label)[] Policies =
        [("compactor", "Compactor"), ("leverage", "leverage only"), ("attention", "attention only"), ("random", "random"), ("recent", "recent")];

    private static readonly (Color Color, LinePattern Line, MarkerShape Marker, float Width)[] s_styles =
    [
        (Picture.Blue, LinePattern.Solid, MarkerShape.FilledCircle, 3.5f), (Picture.Orange, LinePattern.Solid, MarkerShape.FilledTriangleUp, 1.8f),
        (Picture.Green, LinePattern.Solid, MarkerShape.FilledSquare, 1.8f), (Picture.Grey, LinePattern.Dashed, MarkerShape.OpenCircle, 1.8f),
        (Picture.Purple, LinePattern.Dashed, MarkerShape.OpenSquare, 1.8f),
    ];

    /// <param name="curves">What was measured.</param>
    /// <param name="keptShare">Share kept by the compression that is reported, to be marked; null for none.</param>
    /// <param name="name">File name.</param>
    /// <param name="title">Title.</param>
    public static Picture Draw(ErrorCurves curves, double keptShare, string name, string title)
    {
        var plot = Picture.NewPlot(title, "kept (token, head) pairs", "error of attention outputs");
        double highest = 0;
        foreach (var ((policy, label), style) in Policies.Zip(s_styles))
            if (curves.Errors.TryGetValue(policy, out double[]? errors))
            {
                // Where the full output is 0 there is no relative error.
                double[] shown = [.. errors.Select(error => double.IsFinite(error) ? 100 * error : double.NaN)];
                var line = plot.Add.Scatter(curves.KeptShare.Select(share => 100 * share).ToArray(), shown, style.Color);
                (line.LegendText, line.LineWidth, line.LinePattern, line.MarkerShape, line.MarkerSize) = (label, style.Width, style.Line, style.Marker, policy == "compactor" ? 8 : 6);
                highest = Math.Max(highest, shown.Where(double.IsFinite).DefaultIfEmpty(0).Max());
            }
        var mark = plot.Add.VerticalLine(100 * keptShare, 1.2f, Picture.Dark, LinePattern.Dotted);
        mark.LegendText = "this run";
        plot.Axes.SetLimits(0, 102, 0, highest > 0 ? 1.08 * highest : 1);
        foreach (var axis in (IAxis[])[plot.Axes.Bottom, plot.Axes.Left])
            axis.TickGenerator = new NumericAutomatic { LabelFormatter = value => FormattableString.Invariant($"{value:0.##}%") };
        Picture.Legend(plot);
        string points = string.Join("; ", Policies.Where(p => curves.Errors.ContainsKey(p.Policy)).Select(p => $"{p.Label} {Units.Percent(curves.Errors[p.Policy][curves.Retention.Length / 2 - 1])}"));
        return Picture.Render(plot, name, $"Lines of the error of attention outputs against the share of pairs kept. At retention 50%: {points}.", Height);
    }
}
