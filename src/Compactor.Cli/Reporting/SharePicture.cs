using Compactor.Host.Evaluation;
using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Cli.Reporting;

/// <summary>Share of the full cache's score against what is kept, a line a policy.</summary>
internal static class SharePicture
{
    private const int Height = 460;

    private static readonly Color[] s_colors =
        [Picture.Blue, Color.FromHex("#56B4E9"), Color.FromHex("#004B75"), Picture.Orange, Picture.Green, Picture.Purple, Color.FromHex("#E69F00"), Color.FromHex("#B8A200"), Picture.Dark, Picture.Grey,
        Color.FromHex("#882255"), Color.FromHex("#44AA99"), Color.FromHex("#AA4499")];

    private static readonly LinePattern[] s_patterns = [LinePattern.Solid, LinePattern.Dashed, LinePattern.Dotted];

    /// <param name="comparison">What was measured.</param>
    /// <param name="shares">By method and retention.</param>
    public static Picture Draw(PolicyComparison comparison, Interval[][] shares)
    {
        var plan = comparison.Plan;
        var plot = Picture.NewPlot("What is left of the full cache's score", "kept (token, head) pairs", "share of the full cache's score");
        for (int m = 0; m < plan.Methods.Count; m++)
        {
            (double X, double Y)[] points = [.. plan.Retentions.Select((_, r) => (100 * comparison.KeptShare(m, r), 100 * shares[m][r].Value)).Append((100, 100)).OrderBy(point => point.Item1)];
            var line = plot.Add.Scatter(points.Select(point => point.X).ToArray(), points.Select(point => point.Y).ToArray(), s_colors[m % s_colors.Length]);
            (line.LegendText, line.LineWidth, line.LinePattern, line.MarkerSize) = (plan.Methods[m].Name, m == 0 ? 3.5f : 1.8f, s_patterns[m < 3 ? 0 : 1 + m % 2], m == 0 ? 8 : 5);
        }
        plot.Axes.SetLimits(0, 102, 0, 108);
        foreach (var axis in (IAxis[])[plot.Axes.Bottom, plot.Axes.Left])
            axis.TickGenerator = new NumericAutomatic { LabelFormatter = value => FormattableString.Invariant($"{value:0.##}%") };
        Picture.Legend(plot);
        string told = string.Join("; ", plan.Methods.Select((method, m) => $"{method.Name} {string.Join(", ", shares[m].Select(share => Units.Percent(share.Value)))}"));
        return Picture.Render(plot, "shares.png", $"Lines of the share of the full cache's score against the share of pairs kept. At retention {string.Join(", ", plan.Retentions.Select(r => Units.Percent(r)))}: {told}.", Height);
    }
}
