namespace Compactor.Native.Calibration;

/// <summary>One observation: a context compressed to a retention kept this share of the answer's likelihood.</summary>
/// <param name="Retention">r, the share of the cache that was kept: 0 to 1.</param>
/// <param name="ContextNll">Mean negative log-likelihood of the context under the model, nats per token.</param>
/// <param name="Quality">y, 0 to 1: 1 where nothing was lost.</param>
public readonly record struct CalibrationSample(double Retention, double ContextNll, double Quality)
{
    /// <summary>
    /// Measures quality as <c>y = NLL(answer | full cache) / NLL(answer | compressed cache)</c>, clamped to [0, 1]; 1 where neither costs anything.
    /// </summary>
    /// <param name="retention">r, the share of the cache that was kept.</param>
    /// <param name="contextNll">NLL of the context, nats per token.</param>
    /// <param name="answerNllFull">NLL of the right answer after the full cache, 0 or more.</param>
    /// <param name="answerNllCompressed">NLL of the right answer after the compressed cache, 0 or more.</param>
    /// <exception cref="CompactorException">A value is out of range.</exception>
    public static CalibrationSample FromAnswers(double retention, double contextNll, double answerNllFull, double answerNllCompressed)
    {
        foreach (var (name, nll) in ((string, double)[])[("after the full cache", answerNllFull), ("after the compressed cache", answerNllCompressed)])
            if (!(nll >= 0) || double.IsInfinity(nll))
                throw CompactorException.Argument($"The answer's NLL {name} is {nll}; it must be finite and not negative.");
        var sample = new CalibrationSample(retention, contextNll, answerNllCompressed <= answerNllFull ? 1 : answerNllFull / answerNllCompressed);
        sample.Validate();
        return sample;
    }

    /// <summary>Checks the ranges of all three values.</summary>
    /// <exception cref="CompactorException">A value is out of range; the message names it.</exception>
    public void Validate()
    {
        if (!(Retention is >= 0 and <= 1))
            throw CompactorException.Argument($"A sample's retention is {Retention}; use 0 to 1.");
        if (!double.IsFinite(ContextNll))
            throw CompactorException.Argument($"A sample's context NLL is {ContextNll}; it must be finite.");
        if (!(Quality is >= 0 and <= 1))
            throw CompactorException.Argument($"A sample's quality is {Quality}; use 0 to 1.");
    }
}
