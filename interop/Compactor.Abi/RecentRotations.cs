using Compactor.Native.Compression;

namespace Compactor.Abi;

/// <summary>
/// Rotations that hosts have described lately. What describes the same gets the same object, and with it what backends keep of it from one layer to the next: rows of cosines
/// and sines, on a device uploaded once.
/// </summary>
internal sealed class RecentRotations
{
    private const int Most = 4;

    private readonly Lock _lock = new();
    private readonly List<Description> _recent = [];   // the latest last

    /// <summary>Of all calls of this library.</summary>
    public static RecentRotations OfCalls { get; } = new();

    public RotaryEmbedding OfTables(RotaryStyle style, int rotaryDim, ReadOnlySpan<float> cos, ReadOnlySpan<float> sin)
    {
        foreach (var description in Recent())
            if (description.IsOf(style, rotaryDim, 0) && cos.SequenceEqual(description.Cos) && sin.SequenceEqual(description.Sin))
                return Use(description);
        float[] cosines = cos.ToArray(), sines = sin.ToArray();
        return Use(new Description(style, rotaryDim, 0, null, null, cosines, sines, RotaryEmbedding.FromTables(cosines, sines, rotaryDim, style)));
    }

    /// <param name="style">Pairing.</param>
    /// <param name="rotaryDim">Rotated dimensions R.</param>
    /// <param name="theta">Base; 0 where frequencies are given.</param>
    /// <param name="frequencies"><c>[R/2]</c>; empty where theta is given.</param>
    /// <param name="positions">Of packed tokens; empty for their index in their sequence.</param>
    public RotaryEmbedding OfPositions(RotaryStyle style, int rotaryDim, double theta, ReadOnlySpan<double> frequencies, ReadOnlySpan<int> positions)
    {
        foreach (var description in Recent())
            if (description.IsOf(style, rotaryDim, theta) && description.Cos is null && frequencies.SequenceEqual(description.Frequencies) && positions.SequenceEqual(description.Positions))
                return Use(description);
        double[]? given = frequencies.IsEmpty ? null : frequencies.ToArray();
        int[]? at = positions.IsEmpty ? null : positions.ToArray();
        return Use(new Description(style, rotaryDim, theta, given, at, null, null,
            given is null ? RotaryEmbedding.FromTheta(theta, rotaryDim, style, at) : RotaryEmbedding.FromFrequencies(given, style, at)));
    }

    private Description[] Recent()
    {
        lock (_lock)
            return [.. _recent];
    }

    private RotaryEmbedding Use(Description description)
    {
        lock (_lock)
        {
            if (!_recent.Remove(description) && _recent.Count == Most)
                _recent.RemoveAt(0);
            _recent.Add(description);
        }
        return description.Embedding;
    }

    private sealed class Description(RotaryStyle style, int rotaryDim, double theta, double[]? frequencies, int[]? positions, float[]? cos, float[]? sin, RotaryEmbedding embedding)
    {
        public double[]? Frequencies => frequencies;
        public int[]? Positions => positions;
        public float[]? Cos => cos;
        public float[]? Sin => sin;
        public RotaryEmbedding Embedding => embedding;

        public bool IsOf(RotaryStyle otherStyle, int otherDim, double otherTheta) => (style, rotaryDim, theta) == (otherStyle, otherDim, otherTheta);
    }
}
