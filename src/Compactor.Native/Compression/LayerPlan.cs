namespace Compactor.Native.Compression;

/// <summary>
/// All that is known on the host before a layer's data is read: shape, options, which tokens are scored, and how many
/// (token, head) pairs each sequence keeps. Made once per shape, used for any number of layers.
/// </summary>
public sealed class LayerPlan
{
    private readonly long[] _kept;

    /// <summary>Checks options, shape and budget together.</summary>
    /// <exception cref="CompactorException">An option is out of range or the budget cannot be met.</exception>
    public LayerPlan(LayerShape shape, CompressionOptions options, Budget budget)
    {
        options.Validate();
        Shape = shape;
        Options = options;
        Budget = budget;
        _kept = new long[shape.Sequences];
        for (int b = 0; b < shape.Sequences; b++)
        {
            _kept[b] = budget.Count(options, shape.LengthOf(b), shape.KvHeads, shape.BytesPerPair);
            KeptPairs += _kept[b];
        }
    }

    /// <summary>Shape of the layer.</summary>
    public LayerShape Shape { get; }

    /// <summary>Options of the method.</summary>
    public CompressionOptions Options { get; }

    /// <summary>The budget the counts come from.</summary>
    public Budget Budget { get; }

    /// <summary>Kept (token, head) pairs of all sequences.</summary>
    public long KeptPairs { get; }

    /// <summary>Whether every pair is kept, so that nothing needs scoring.</summary>
    public bool KeepsEverything => KeptPairs == (long)Shape.Tokens * Shape.KvHeads;

    /// <summary>Kept (token, head) pairs of sequence <paramref name="b"/>.</summary>
    public long KeptPairsOf(int b) => _kept[b];

    /// <summary>
    /// Scored tokens [first, end) of sequence <paramref name="b"/>: all of them, or all but the protected ones, where chunks begin at first.
    /// Empty when everything is protected.
    /// </summary>
    public (int First, int End) ScoredTokens(int b)
    {
        int tokens = Shape.LengthOf(b);
        if (Options.ScoreProtected)
            return (0, tokens);
        return tokens <= (long)Options.ProtectFirst + Options.ProtectLast
            ? (0, 0)
            : (Options.ProtectFirst, tokens - Options.ProtectLast);
    }

    /// <summary>Whether token <paramref name="token"/> of sequence <paramref name="b"/> is always kept.</summary>
    public bool IsProtected(int b, int token) =>
        token < Options.ProtectFirst || token >= Shape.LengthOf(b) - (long)Options.ProtectLast;

    /// <summary>Weight lambda of leverage in sequence <paramref name="b"/>.</summary>
    public double LeverageWeightOf(int b) =>
        Options.LeverageWeight.At(Budget.RetentionOf(Math.Max(1, Shape.LengthOf(b)), Shape.BytesPerPair * Shape.KvHeads));
}
