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
    private readonly List<RotaryEmbedding> _recent = [];   // the latest last

    /// <summary>Of all calls of this library.</summary>
    public static RecentRotations OfCalls { get; } = new();

    public RotaryEmbedding OfTables(RotaryStyle style, int rotaryDim, ReadOnlySpan<float> cos, ReadOnlySpan<float> sin)
    {
        foreach (var embedding in Recent())
            if (embedding.IsOf(style, rotaryDim, [], [], cos, sin))
                return Use(embedding);
        return Use(RotaryEmbedding.FromTables(cos.ToArray(), sin.ToArray(), rotaryDim, style));
    }

    /// <param name="style">Pairing.</param>
    /// <param name="frequencies"><c>[R/2]</c>.</param>
    /// <param name="positions">Of packed tokens; empty for their index in their sequence.</param>
    public RotaryEmbedding OfPositions(RotaryStyle style, ReadOnlySpan<double> frequencies, ReadOnlySpan<int> positions)
    {
        foreach (var embedding in Recent())
            if (embedding.IsOf(style, 2 * frequencies.Length, frequencies, positions, [], []))
                return Use(embedding);
        return Use(RotaryEmbedding.FromFrequencies(frequencies.ToArray(), style, positions.IsEmpty ? null : positions.ToArray()));
    }

    private RotaryEmbedding[] Recent()
    {
        lock (_lock)
            return [.. _recent];
    }

    private RotaryEmbedding Use(RotaryEmbedding embedding)
    {
        lock (_lock)
        {
            if (!_recent.Remove(embedding) && _recent.Count == Most)
                _recent.RemoveAt(0);
            _recent.Add(embedding);
        }
        return embedding;
    }
}
