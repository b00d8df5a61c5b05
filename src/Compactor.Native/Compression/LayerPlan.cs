namespace Compactor.Native.Compression;

/// <summary>
/// All that is known on the host before a layer's data is read: shape, options, which tokens are scored, and how many
/// (token, head) pairs each sequence keeps. Made once per shape, used for any number of layers.
/// </summary>
public sealed class LayerPlan
{
    private readonly long[] _kept, _requested;
    private readonly int[] _keptOfHeads = [];
    private readonly Budget[] _budgets;
    private Sketch? _sketch;

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
        if (shape.IsRagged)
        {
            if (options.SelectionScope == SelectionScope.Token)
                throw CompactorException.Unsupported(
                    $"Layer {shape.Layer}: SelectionScope is Token, but the heads of a ragged layer hold different tokens; use Sequence or Head.");
            _keptOfHeads = new int[shape.Sequences * shape.KvHeads];
        }
        for (int b = 0; b < shape.Sequences; b++)
        {
            _kept[b] = shape.IsRagged
                ? CountRagged(b, out _requested[b])
                : budgets[b].Count(options, shape.LengthOf(b), shape.KvHeads, shape.BytesPerPair, out _requested[b]);
            KeptPairs += _kept[b];
        }
    }

    /// <summary>A plan that scores every head of a ragged plan as a sequence of one head. It counts nothing.</summary>
    internal LayerPlan PerHead() =>
        new(new LayerShape(Shape.CuSeqlens, 0, 1, Shape.HeadDim, Shape.ElementType) { Layer = Shape.Layer }, Options);

    private LayerPlan(LayerShape shape, CompressionOptions options) => (Shape, Options, _budgets, _kept, _requested) = (shape, options, [], [], []);

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

    /// <summary>The sketches of the options, drawn at the first use.</summary>
    internal Sketch Sketch => LazyInitializer.EnsureInitialized(ref _sketch, () => Sketch.Draw(Shape, Options));

    /// <summary>Options of the method.</summary>
    public CompressionOptions Options { get; }

    /// <summary>The budget that the count of sequence <paramref name="b"/> comes from.</summary>
    public Budget BudgetOf(int b) => _budgets[b];

    /// <summary>Kept (token, head) pairs of all sequences.</summary>
    public long KeptPairs { get; }

    /// <summary>Whether every pair is kept, so that nothing needs scoring.</summary>
    public bool KeepsEverything => KeptPairs == Shape.Pairs;

    /// <summary>Kept (token, head) pairs of sequence <paramref name="b"/>.</summary>
    public long KeptPairsOf(int b) => _kept[b];

    /// <summary>Kept tokens of each head of sequence <paramref name="b"/> in head and token scope, where they are known beforehand.</summary>
    public int KeptTokensOf(int b, int head) => Shape.IsRagged ? _keptOfHeads[b * Shape.KvHeads + head] : (int)(_kept[b] / Shape.KvHeads);

    /// <summary>
    /// Pairs that the budget of sequence <paramref name="b"/> asked for: below <see cref="KeptPairsOf"/> where it was raised to the
    /// protected or minimum tokens.
    /// </summary>
    public long RequestedPairsOf(int b) => _requested[b];

    /// <summary>
    /// Scored tokens [first, end) of sequence <paramref name="b"/>: all of them, or all but the protected ones, where chunks begin at first.
    /// Empty when everything is protected.
    /// </summary>
    public (int First, int End) ScoredTokens(int b) => Scored(Shape.LengthOf(b));

    /// <summary>Scored tokens, or slots, [first, end) of one head of sequence <paramref name="b"/>.</summary>
    public (int First, int End) ScoredTokens(int b, int head) => Scored(Shape.LengthOf(b, head));

    /// <summary>Whether token <paramref name="token"/> of sequence <paramref name="b"/> is always kept.</summary>
    public bool IsProtected(int b, int token) => IsProtected(b, 0, token);

    /// <summary>Whether token, or slot, <paramref name="token"/> of one head of sequence <paramref name="b"/> is always kept.</summary>
    public bool IsProtected(int b, int head, int token) =>
        token < Options.ProtectFirst || token >= Shape.LengthOf(b, head) - (long)Options.ProtectLast;

    private (int First, int End) Scored(int tokens)
    {
        if (Options.ScoreProtected)
            return (0, tokens);
        return tokens <= (long)Options.ProtectFirst + Options.ProtectLast
            ? (0, 0)
            : (Options.ProtectFirst, tokens - Options.ProtectLast);
    }

    private long CountRagged(int b, out long requested)
    {
        int heads = Shape.KvHeads;
        Span<int> lengths = heads <= 256 ? stackalloc int[heads] : new int[heads];
        for (int h = 0; h < heads; h++)
            lengths[h] = Shape.LengthOf(b, h);
        return _budgets[b].CountRagged(Options, lengths, Shape.BytesPerPair, _keptOfHeads.AsSpan(b * heads, heads), out requested);
    }

    /// <summary>Weight lambda of leverage in sequence <paramref name="b"/>.</summary>
    public double LeverageWeightOf(int b) =>
        Options.LeverageWeight.At(_budgets[b].RetentionOf(Math.Max(1, Shape.PairsOf(b) / Shape.KvHeads), Shape.BytesPerPair * Shape.KvHeads));
}
