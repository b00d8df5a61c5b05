namespace Compactor.Host.Tests;

/// <summary>Comparison of logits.</summary>
internal static class Closeness
{
    public static void Assert(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual, double tolerance)
    {
        Xunit.Assert.Equal(expected.Length, actual.Length);
        for (int i = 0; i < expected.Length; i++)
            Xunit.Assert.True(Math.Abs(expected[i] - actual[i]) < tolerance, $"logit {i} is {actual[i]}; expected {expected[i]}");
    }
}
