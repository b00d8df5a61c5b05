using System.Globalization;
using Compactor.Cli.Reporting;
using Compactor.Native;
using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Bench.Scaling;

/// <summary>Time against tokens, both logarithmic: medians as points, and the fitted laws as lines over what they are fitted to.</summary>
internal static class ScalingPicture
{
    private const int Height = 460;

    private static readonly (Color Color, MarkerShape Shape)[] s_styles =
    [
        (Picture.Blue, MarkerShape.FilledCircle), (Picture.Blue, MarkerShape.OpenCircle), (Picture.Orange, MarkerShape.FilledSquare), (Picture.Green, MarkerShape.FilledDiamond),
        (Picture.Purple, MarkerShape.FilledTriangleUp), (Picture.Grey, MarkerShape.FilledTriangleDown), (Picture.Dark, MarkerShape.OpenSquare),
    ];

    public static byte[] Draw(IReadOnlyList<StageScaling> stages, int fittedFrom, string device, ElementType type)
    {
        var plot = Picture.NewPlot($"Stages of one layer: {device}, {type.ToString().ToLowerInvariant()}", "tokens", "ms");
        foreach (var (stage, (color, shape)) in stages.Zip(s_styles))
        {
            double[] n = [.. stage.Points.Select(p => Math.Log2(p.Tokens))], fitted = [Math.Log2(fittedFrom), n[^1]];
            var points = plot.Add.ScatterPoints(n, stage.Points.Select(p => Math.Log10(BenchResult.Median(p.Seconds) * 1e3)).ToArray(), color);
            (points.MarkerShape, points.MarkerSize) = (shape, 8);
            points.LegendText = string.Create(CultureInfo.InvariantCulture, $"{stage.Name.Split(", r ")[0]}: N^{stage.Law.Exponent:F2}");
            plot.Add.ScatterLine(fitted, fitted.Select(x => Math.Log10(stage.Law.At(Math.Pow(2, x)) * 1e3)).ToArray(), color).LineWidth = 1.2f;
        }
        double[] ticks = [.. stages[0].Points.Select(p => Math.Log2(p.Tokens))];
        plot.Axes.Bottom.TickGenerator = new NumericManual(ticks, [.. stages[0].Points.Select(p => p.Tokens.ToString("#,0", CultureInfo.InvariantCulture))]);
        plot.Axes.Left.TickGenerator = new NumericAutomatic { LabelFormatter = power => Math.Pow(10, power).ToString("0.###", CultureInfo.InvariantCulture), IntegerTicksOnly = true };
        plot.Axes.SetLimitsX(ticks[0] - 0.2, ticks[^1] + 0.2);
        Picture.Legend(plot);
        plot.Layout.Fixed(new PixelPadding(74, 285, 52, 42));
        plot.ScaleFactor = 1;
        return plot.GetImageBytes(Picture.WidthInPoints, Height, ImageFormat.Png);
    }
}
