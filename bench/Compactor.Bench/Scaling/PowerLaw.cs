using MathNet.Numerics;
using MathNet.Numerics.LinearRegression;
using MathNet.Numerics.Statistics;

namespace Compactor.Bench.Scaling;

/// <summary>t = c·N^e, by least squares of log t on log N.</summary>
/// <param name="Exponent">e.</param>
/// <param name="StandardError">Of e.</param>
/// <param name="Factor">c.</param>
internal readonly record struct PowerLaw(double Exponent, double StandardError, double Factor)
{
    /// <param name="points">Three or more.</param>
    public static PowerLaw Fit(IReadOnlyCollection<(double N, double Time)> points)
    {
        double[] x = [.. points.Select(p => Math.Log(p.N))], y = [.. points.Select(p => Math.Log(p.Time))];
        var (intercept, slope) = SimpleRegression.Fit(x, y);
        double residual = GoodnessOfFit.StandardError(x.Select(at => intercept + slope * at), y, degreesOfFreedom: 2);
        return new(slope, residual / Math.Sqrt((x.Length - 1) * x.Variance()), Math.Exp(intercept));
    }

    public double At(double n) => Factor * Math.Pow(n, Exponent);
}
