namespace Compactor.Native.Compression;

/// <summary>How RoPE pairs the dimensions of a head.</summary>
public enum RotaryStyle
{
    /// <summary>Dimension i is paired with i + R/2 (Llama, Qwen in Hugging Face layout).</summary>
    HalfRotation,
    /// <summary>Dimension 2i is paired with 2i + 1 (GPT-J, original Llama weights).</summary>
    Interleaved,
}

/// <summary>
/// The rotary position embedding a cache's keys carry, so that it can be undone while loading. Pair i of the first R dimensions at
/// position p was mapped by <c>(x, y) -> (c·x - s·y, s·x + c·y)</c>; the inverse divides by <c>c² + s²</c>, so rotations that also
/// scale are undone too. Dimensions from R on are untouched.
/// </summary>
public sealed class RotaryEmbedding
{
    private readonly double[]? _inverseFrequencies;
    private readonly IReadOnlyList<int>? _positions;
    private readonly float[]? _cos, _sin;

    private RotaryEmbedding(RotaryStyle style, int rotaryDim, double[]? inverseFrequencies, IReadOnlyList<int>? positions, float[]? cos, float[]? sin) =>
        (Style, RotaryDim, _inverseFrequencies, _positions, _cos, _sin) = (style, rotaryDim, inverseFrequencies, positions, cos, sin);

    /// <summary>Pairing of dimensions.</summary>
    public RotaryStyle Style { get; }

    /// <summary>Rotated dimensions R, even, at the start of each head.</summary>
    public int RotaryDim { get; }

    /// <summary>Standard frequencies <c>theta^(-2i/R)</c>.</summary>
    /// <param name="theta">Base, above 1 (10000 for Llama 2, 500000 for Llama 3, 1000000 for Qwen2).</param>
    /// <param name="rotaryDim">Rotated dimensions R, even.</param>
    /// <param name="style">Pairing.</param>
    /// <param name="positions"><c>[N]</c> position of each packed token; null for its index within its sequence.</param>
    /// <exception cref="CompactorException">A parameter is out of range.</exception>
    public static RotaryEmbedding FromTheta(double theta, int rotaryDim, RotaryStyle style = RotaryStyle.HalfRotation, IReadOnlyList<int>? positions = null)
    {
        return FromFrequencies(Frequencies(theta, rotaryDim), style, positions);
    }

    /// <summary>Standard frequencies <c>theta^(-2i/R)</c>.</summary>
    internal static double[] Frequencies(double theta, int rotaryDim)
    {
        if (!(theta > 1) || !double.IsFinite(theta))
            throw CompactorException.Argument($"RoPE theta is {theta}; use a finite base above 1 (10000 and 500000 are common).");
        if (rotaryDim < 2 || int.IsOddInteger(rotaryDim))
            throw CompactorException.Argument($"The rotary dimension is {rotaryDim}; use an even number from 2 to the head dimension.");
        return [.. Enumerable.Range(0, rotaryDim / 2).Select(i => Math.Pow(theta, -2.0 * i / rotaryDim))];
    }

    /// <summary>Given frequencies, for scaled variants (llama3, YaRN, linear).</summary>
    /// <param name="inverseFrequencies"><c>[R/2]</c> radians a position.</param>
    /// <param name="style">Pairing.</param>
    /// <param name="positions"><c>[N]</c> position of each packed token; null for its index within its sequence.</param>
    /// <exception cref="CompactorException">A frequency is not finite, or a position is negative.</exception>
    public static RotaryEmbedding FromFrequencies(double[] inverseFrequencies, RotaryStyle style = RotaryStyle.HalfRotation, IReadOnlyList<int>? positions = null)
    {
        if (inverseFrequencies.Length == 0 || !inverseFrequencies.All(double.IsFinite))
            throw CompactorException.Argument("RoPE frequencies must be finite and at least one.");
        if (positions?.Any(p => p < 0) == true)
            throw CompactorException.Argument($"RoPE position {positions.First(p => p < 0)} is negative.");
        return new RotaryEmbedding(style, 2 * inverseFrequencies.Length, inverseFrequencies, positions, null, null);
    }

    /// <summary>Given tables of one row a packed token.</summary>
    /// <param name="cos"><c>[N, R/2]</c>, row-major.</param>
    /// <param name="sin"><c>[N, R/2]</c>, row-major.</param>
    /// <param name="rotaryDim">Rotated dimensions R, even.</param>
    /// <param name="style">Pairing.</param>
    /// <exception cref="CompactorException">The tables differ in size, do not divide into rows, or hold a pair that cannot be inverted.</exception>
    public static RotaryEmbedding FromTables(float[] cos, float[] sin, int rotaryDim, RotaryStyle style = RotaryStyle.HalfRotation)
    {
        if (rotaryDim < 2 || int.IsOddInteger(rotaryDim) || cos.Length != sin.Length || cos.Length % (rotaryDim / 2) != 0)
            throw CompactorException.Argument($"RoPE tables hold {cos.Length} cosines and {sin.Length} sines; expected [N, {rotaryDim / 2}] each for rotary dimension {rotaryDim}.");
        for (int i = 0; i < cos.Length; i++)
        {
            float power = cos[i] * cos[i] + sin[i] * sin[i];
            if (!(power > 1e-12f) || !float.IsFinite(power))
                throw CompactorException.Argument($"RoPE tables at token {i / (rotaryDim / 2)}, pair {i % (rotaryDim / 2)} hold cos {cos[i]} and sin {sin[i]}, which no rotation has.");
        }
        return new RotaryEmbedding(style, rotaryDim, null, null, cos, sin);
    }

    /// <summary>Checks the embedding against a layer's shape.</summary>
    /// <exception cref="CompactorException">More dimensions are rotated than a head has, or the tables do not cover the tokens.</exception>
    public void Validate(LayerShape shape)
    {
        if (RotaryDim > shape.HeadDim)
            throw CompactorException.Argument($"The rotary dimension {RotaryDim} exceeds the head dimension {shape.HeadDim}.");
        int rows = _cos?.Length / (RotaryDim / 2) ?? _positions?.Count ?? shape.Tokens;
        if (rows != shape.Tokens)
            throw CompactorException.Argument($"RoPE {(_cos is null ? "positions" : "tables")} cover {rows} tokens; the layer has {shape.Tokens}.");
    }

    /// <summary>Checks the embedding for keys whose positions a cache has stored: frequencies without positions of their own, or tables of one row a position.</summary>
    /// <param name="headDim">Head dimension D.</param>
    /// <param name="positionEnd">A position above every stored one.</param>
    /// <exception cref="CompactorException">More dimensions are rotated than a head has, positions are given, or the tables are too short.</exception>
    public void ValidateStored(int headDim, int positionEnd)
    {
        if (RotaryDim > headDim)
            throw CompactorException.Argument($"The rotary dimension {RotaryDim} exceeds the head dimension {headDim}.");
        if (_positions is not null)
            throw CompactorException.Argument("The rotary embedding has positions of its own; a cache has stored those of its slots. Create it without positions.");
        if (_cos is not null && _cos.Length / (RotaryDim / 2) < positionEnd)
            throw CompactorException.Argument($"RoPE tables cover {_cos.Length / (RotaryDim / 2)} positions; the cache holds positions up to {positionEnd - 1}.");
    }

    /// <summary>Whether it was made of these, where what it was not made of is empty.</summary>
    internal bool IsOf(RotaryStyle style, int rotaryDim, ReadOnlySpan<double> frequencies, ReadOnlySpan<int> positions, ReadOnlySpan<float> cos, ReadOnlySpan<float> sin) =>
        (Style, RotaryDim) == (style, rotaryDim) && frequencies.SequenceEqual(_inverseFrequencies) && positions.SequenceEqual(_positions is null ? [] : _positions as int[] ?? [.. _positions])
        && cos.SequenceEqual(_cos) && sin.SequenceEqual(_sin);

    /// <summary>Whether a token's angles are those of its index in its sequence, whatever the batch.</summary>
    internal bool IsOfPositions => _cos is null && _positions is null;

    /// <summary>Whether angles are given by tables instead of following from positions.</summary>
    internal bool HasTables => _cos is not null;

    /// <summary>Positions there are angles for.</summary>
    internal int StoredPositions => _cos?.Length / (RotaryDim / 2) ?? int.MaxValue;

    /// <summary>Cosine and sine of every pair of one token, in double.</summary>
    /// <param name="packedToken">Index in the packed batch.</param>
    /// <param name="token">Index within the sequence.</param>
    /// <param name="cos"><c>[R/2]</c>.</param>
    /// <param name="sin"><c>[R/2]</c>.</param>
    public void Angles(int packedToken, int token, Span<double> cos, Span<double> sin)
    {
        int pairs = RotaryDim / 2;
        if (_cos is not null)
        {
            for (int i = 0; i < pairs; i++)
                (cos[i], sin[i]) = (_cos[packedToken * pairs + i], _sin![packedToken * pairs + i]);
            return;
        }
        AnglesAt(PositionOf(packedToken, token), cos, sin);
    }

    /// <summary>Position of a token, where there are no tables.</summary>
    internal int PositionOf(int packedToken, int token) => _positions is null ? token : _positions[packedToken];

    /// <summary>Cosine and sine of every pair at a position, where there are no tables.</summary>
    internal void AnglesAt(int position, Span<double> cos, Span<double> sin)
    {
        for (int i = 0; i < _inverseFrequencies!.Length; i++)
            (sin[i], cos[i]) = Math.SinCos(position * _inverseFrequencies[i]);
    }
}
