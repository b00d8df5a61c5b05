namespace Compactor.Native.Calibration;

/// <summary>
/// Least squares of <c>f(r; alpha·NLL + beta)</c> against y with asymmetric weights: Levenberg-Marquardt from the best points of a fixed grid, over
/// <c>b = center + slope·(NLL - mean)/deviation</c>, |center| and |slope| at most 50 so that data without an optimum (all y = 1) give a finite answer.
/// </summary>
internal static class CalibrationFit
{
    private const double Bound = 50;
    private const int Starts = 5, Steps = 200;
    private static readonly double[] Grid = [-40, -20, -10, -5, -2.5, -1, 0, 1, 2.5, 5, 10, 20, 40];

    public static (double Alpha, double Beta) Solve(IReadOnlyList<CalibrationSample> samples, double penalty)
    {
        double mean = samples.Average(s => s.ContextNll);
        double deviation = Math.Sqrt(samples.Average(s => (s.ContextNll - mean) * (s.ContextNll - mean)));
        // One NLL for all says nothing about alpha.
        bool sloped = deviation > 1e-12 * Math.Max(1, Math.Abs(mean));
        double[] x = [.. samples.Select(s => sloped ? (s.ContextNll - mean) / deviation : 0)];

        var starts = from center in Grid from slope in sloped ? Grid : [0] select (Loss: Loss(center, slope), center, slope);
        var best = starts.OrderBy(s => s.Loss).Take(Starts).Select(s => Descend(s.center, s.slope)).MinBy(s => s.Loss);
        double alpha = sloped ? best.Slope / deviation : 0;
        return (alpha, best.Center - alpha * mean);

        double Loss(double center, double slope)
        {
            double sum = 0;
            for (int i = 0; i < x.Length; i++)
            {
                double error = QualityCurve.Unchecked(samples[i].Retention, center + slope * x[i]) - samples[i].Quality;
                sum += (error > 0 ? penalty : 1) * error * error;
            }
            return sum;
        }

        (double Loss, double Center, double Slope) Descend(double center, double slope)
        {
            double loss = Loss(center, slope), damping = 1e-3;
            for (int step = 0; step < Steps && damping < 1e12; step++)
            {
                double h00 = 0, h01 = 0, h11 = 0, g0 = 0, g1 = 0;
                for (int i = 0; i < x.Length; i++)
                {
                    double b = center + slope * x[i], r = samples[i].Retention, width = 1e-5 * (1 + Math.Abs(b));
                    double error = QualityCurve.Unchecked(r, b) - samples[i].Quality;
                    double derivative = (QualityCurve.Unchecked(r, b + width) - QualityCurve.Unchecked(r, b - width)) / (2 * width);
                    double weight = error > 0 ? penalty : 1;
                    (h00, h01, h11) = (h00 + weight * derivative * derivative, h01 + weight * derivative * derivative * x[i], h11 + weight * derivative * derivative * x[i] * x[i]);
                    (g0, g1) = (g0 + weight * error * derivative, g1 + weight * error * derivative * x[i]);
                }
                double d0 = h00 * (1 + damping) + 1e-30, d1 = h11 * (1 + damping) + 1e-30, determinant = d0 * d1 - h01 * h01;
                double nextCenter = Math.Clamp(center - (d1 * g0 - h01 * g1) / determinant, -Bound, Bound);
                double nextSlope = sloped ? Math.Clamp(slope - (d0 * g1 - h01 * g0) / determinant, -Bound, Bound) : 0;
                double next = Loss(nextCenter, nextSlope);
                if (!(next < loss))
                {
                    damping *= 10;
                    continue;
                }
                bool converged = loss - next <= 1e-15 * loss;
                (center, slope, loss, damping) = (nextCenter, nextSlope, next, Math.Max(1e-12, damping / 10));
                if (converged)
                    break;
            }
            return (loss, center, slope);
        }
    }
}
