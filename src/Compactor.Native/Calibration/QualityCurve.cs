namespace Compactor.Native.Calibration;

/// <summary>
/// Share of the full cache's answer quality that a retention r is expected to keep: <c>f(r) = expm1(r·b) / expm1(b)</c> (arXiv 2507.08143, section on
/// context-calibrated compression), with f(0) = 0, f(1) = 1, f(r) = r at b = 0. The steepness b is negative where little of the cache carries
/// the answer (quality saturates early) and positive where nearly all of it does.
/// </summary>
public static class QualityCurve
{
    private const double Straight = 1e-8, Steep = 30;

    /// <summary>Expected quality at a retention.</summary>
    /// <param name="retention">r, 0 to 1.</param>
    /// <param name="steepness">b, any finite number.</param>
    /// <returns>f(r), 0 to 1.</returns>
    /// <exception cref="CompactorException">The retention is not in [0, 1], or the steepness not finite.</exception>
    public static double Quality(double retention, double steepness)
    {
        CheckShare(nameof(retention), retention);
        CheckSteepness(steepness);
        return Math.Clamp(Unchecked(retention, steepness), 0, 1);
    }

    /// <summary>The smallest retention whose expected quality reaches a target.</summary>
    /// <param name="quality">tau, 0 to 1.</param>
    /// <param name="steepness">b, any finite number.</param>
    /// <returns>The r with f(r) = tau: 0 to 1.</returns>
    /// <exception cref="CompactorException">The quality is not in [0, 1], or the steepness not finite.</exception>
    public static double RetentionFor(double quality, double steepness)
    {
        CheckShare(nameof(quality), quality);
        CheckSteepness(steepness);
        if (quality is 0 or 1 || Math.Abs(steepness) < Straight)
            return quality;
        double retention = steepness > Steep
            ? 1 + Math.Log(quality) / steepness
            : Log1P(quality * ExpM1(steepness)) / steepness;
        return Math.Clamp(retention, 0, 1);
    }

    /// <summary>f(r) without checks and unclamped; written so that no b overflows.</summary>
    internal static double Unchecked(double retention, double steepness) =>
        Math.Abs(steepness) < Straight ? retention
        : steepness < 0 ? ExpM1(retention * steepness) / ExpM1(steepness)
        : Math.Exp((retention - 1) * steepness) * ExpM1(-retention * steepness) / ExpM1(-steepness);

    // The runtime's ExpM1 and LogP1 are exp(x) - 1 and log(1 + x), which lose all digits near 0.
    private static double ExpM1(double x) => 2 * Math.Exp(x / 2) * Math.Sinh(x / 2);

    private static double Log1P(double x) => Math.Abs(x) < 0.5 ? 2 * Math.Atanh(x / (2 + x)) : Math.Log(1 + x);

    private static void CheckShare(string name, double value)
    {
        if (!(value is >= 0 and <= 1))
            throw CompactorException.Argument($"The {name} is {value}; use 0 to 1.");
    }

    private static void CheckSteepness(double steepness)
    {
        if (!double.IsFinite(steepness))
            throw CompactorException.Argument($"The steepness b is {steepness}; it must be finite.");
    }
}
