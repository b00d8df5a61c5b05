namespace Compactor.Native.Compression;

/// <summary>
/// All that is known on the host before a layer's data is read: shape, options, which tokens are scored, and how many
/// (token, head) pairs each sequence keeps. Made once per shape, used for any number of layers.
/// </summary>
public sealed class LayerPlan
{
    private readonly long[] _kept, _requested;
    private readonly Budget[] _budgets;

    /// <summary>Checks options, shape and budget together.</summary>
    /// <exception cref="CompactorException">An option is out of range or the budget cannot be met.</exception>
    public LayerPlan(LayerShape shape, CompressionOptions options, Budget budget)
        : this(shape, options, [.. Enumerable.Repeat(budget, shape.Sequences)])
    {
    }

    /// <summary>Checks options, shape and budgets together.</summary>
    /// <param name="shape">Shape of the layer.</param>
    /// <param name="options">Options of the method.</param>
    /// <param name="budgets"><c>[B]</c>: the budget of each sequence.</param>
    /// <exception cref="CompactorException">An option is out of range, a budget cannot be met, or their number is not that of the sequences.</exception>
    public LayerPlan(LayerShape shape, CompressionOptions options, IReadOnlyList<Budget> budgets)
    {
        options.Validate();
        if (budgets.Count != shape.Sequences)
            throw CompactorException.Argument($"There are {budgets.Count} budgets for {shape.Sequences} sequences; give one a sequence.");
        Shape = shape;
        Options = options;
        _budgets = [.. budgets];
        _kept = new long[shape.Sequences];
        _requested = new long[shape.Sequences];
        for (int b = 0; b < shape.Sequences; b++)
        {
            _kept[b] = budgets[b].Count(options, shape.LengthOf(b), shape.KvHeads, shape.BytesPerPair, out _requested[b]);
            KeptPairs += _kept[b];
        }
    }

    private LayerPlan(LayerPlan counts, CompressionOptions options) =>
        (Shape, Options, KeptPairs, _budgets, _kept, _requested) =
        (counts.Shape, options, counts.KeptPairs, counts._budgets, counts._kept, counts._kept);

    /// <summary>
    /// The same shape, scope and counts with no protected tokens and no minimum a head: what a baseline gets that keeps as many pairs
    /// by a rule of its own.
    /// </summary>
    public LayerPlan WithoutProtection() => new(this, Options with { ProtectFirst = 0, ProtectLast = 0, MinTokensPerHead = 0 });

    /// <summary>Shape of the layer.</summary>
    public LayerShape Shape { get; }

    /// <summary>Options of the method.</summary>
    public CompressionOptions Options { get; }

    /// <summary>The budget that the count of sequence <paramref name="b"/> comes from.</summary>
    public Budget BudgetOf(int b) => _budgets[b];

    /// <summary>Kept (token, head) pairs of all sequences.</summary>
    public long KeptPairs { get; }

    /// <summary>Whether every pair is kept, so that nothing needs scoring.</summary>
    public bool KeepsEverything => KeptPairs == (long)Shape.Tokens * Shape.KvHeads;

    /// <summary>Kept (token, head) pairs of sequence <paramref name="b"/>.</summary>
    public long KeptPairsOf(int b) => _kept[b];

    /// <summary>
    /// Pairs that the budget of sequence <paramref name="b"/> asked for: below <see cref="KeptPairsOf"/> where it was raised to the
    /// protected or minimum tokens.
    /// </summary>
    public long RequestedPairsOf(int b) => _requested[b];

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
        Options.LeverageWeight.At(_budgets[b].RetentionOf(Math.Max(1, Shape.LengthOf(b)), Shape.BytesPerPair * Shape.KvHeads));
}
