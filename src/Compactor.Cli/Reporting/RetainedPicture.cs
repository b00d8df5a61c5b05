using Compactor.Host.Evaluation;
using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Cli.Reporting;

/// <summary>What a calibration keeps of each context, against how hard the context is to predict.</summary>
internal static class RetainedPicture
{
    private const int Height = 400;

    /// <summary>Colours of tasks, in their order.</summary>
    public static readonly Color[] Colors =
        [Picture.Blue, Picture.Orange, Picture.Green, Picture.Purple, Color.FromHex("#E69F00"), Color.FromHex("#56B4E9"), Picture.Dark];

    /// <param name="trial">What was fitted and tried.</param>
    public static Picture Draw(CalibrationTrial trial)
    {
        var plot = Picture.NewPlot($"Kept at quality {trial.Plan.Quality}, context by context", "negative log-likelihood of the context, nats a token", "kept (token, head) pairs");
        for (int t = 0; t < trial.Contexts.Length; t++)
        {
            double[] nll = [.. trial.Contexts[t].Select(context => context.ContextNll)], kept = [.. trial.Contexts[t].Select(context => 100 * context.Compressed.KeptShare)];
            var points = plot.Add.ScatterPoints(nll, kept, Colors[t % Colors.Length]);
            (points.LegendText, points.MarkerSize) = (trial.Plan.Tasks[t].Name, 6);
        }
        plot.Axes.SetLimitsY(0, 104);
        plot.Axes.Bottom.TickGenerator = new NumericAutomatic { LabelFormatter = value => FormattableString.Invariant($"{value:0.##}") };
        plot.Axes.Left.TickGenerator = new NumericAutomatic { LabelFormatter = value => FormattableString.Invariant($"{value:0.##}%") };
        Picture.Legend(plot);
        string told = string.Join("; ", trial.Plan.Tasks.Select((task, t) => $"{task.Name} {Units.Percent(trial.Contexts[t].Average(context => context.Compressed.KeptShare))}"));
        return Picture.Render(plot, "retained.png", $"Points of the share of pairs kept against the context's negative log-likelihood. Means: {told}.", Height);
    }
}
