using Compactor.Host.Evaluation;
using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Cli.Reporting;

/// <summary>Quality against retention: what was observed, and the curves fitted to it.</summary>
internal static class CurvesPicture
{
    private const int Height = 400, CurvePoints = 100;

    /// <param name="trial">What was fitted and tried.</param>
    public static Picture Draw(CalibrationTrial trial)
    {
        var plan = trial.Plan;
        var plot = Picture.NewPlot("Quality kept, observed and fitted", "retention", "share of the answers' likelihood");
        double[] r = [.. Enumerable.Range(0, CurvePoints + 1).Select(i => (double)i / CurvePoints)];
        int perTask = trial.Observations.Length / plan.FitTasks.Count;
        for (int t = 0; t < plan.FitTasks.Count; t++)
        {
            var observed = trial.Observations.Skip(t * perTask).Take(perTask).ToArray();
            double nll = observed.Average(sample => sample.ContextNll);
            var color = RetainedPicture.Colors[RetrievalTask.All.TakeWhile(task => task.Name != plan.FitTasks[t].Name).Count() % RetainedPicture.Colors.Length];
            double[] means = [.. plan.FitRetentions.Select(retention => 100 * observed.Where(sample => sample.Retention == retention).Average(sample => sample.Quality))];
            double[] fitted = [.. r.Select(x => 100 * trial.Calibration.Quality(x, nll))];
            var points = plot.Add.ScatterPoints(plan.FitRetentions.Select(retention => 100 * retention).ToArray(), means, color);
            (points.LegendText, points.MarkerSize) = (plan.FitTasks[t].Name, 8);
            plot.Add.ScatterLine(r.Select(x => 100 * x).ToArray(), fitted, color).LineWidth = 1.8f;
        }
        plot.Axes.SetLimits(0, 102, 0, 104);
        foreach (var axis in (IAxis[])[plot.Axes.Bottom, plot.Axes.Left])
            axis.TickGenerator = new NumericAutomatic { LabelFormatter = value => FormattableString.Invariant($"{value:0.##}%") };
        Picture.Legend(plot);
        return Picture.Render(plot, "curves.png", $"Points of the mean share of the answers' likelihood kept against retention, by task, with the fitted curve of each task's mean context.", Height);
    }
}
