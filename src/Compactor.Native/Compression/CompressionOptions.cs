namespace Compactor.Native.Compression;

/// <summary>Which sketch matrices Phi a model uses.</summary>
public enum SketchSharing
{
    /// <summary>One Phi for every layer, sequence and head.</summary>
    Shared,
    /// <summary>One Phi per layer, shared by its sequences and heads.</summary>
    PerLayer,
    /// <summary>One Phi per layer, sequence and head, keyed by the stable sequence id and the global head.</summary>
    PerSequenceHead,
}

/// <summary>The elements over which mean and standard deviation of a score are taken.</summary>
public enum NormalizationScope
{
    /// <summary>Each head of each sequence by itself.</summary>
    Head,
    /// <summary>All heads of a sequence together.</summary>
    Sequence,
    /// <summary>All heads of one chunk of a sequence together: the leverage chunk for leverage, the attention chunk for attention.</summary>
    Chunk,
}

/// <summary>How the query heads that share a KV head combine.</summary>
public enum GroupReduction
{
    /// <summary>Sum over the group.</summary>
    Sum,
    /// <summary>Mean over the group.</summary>
    Mean,
}

/// <summary>Whether protected tokens come out of the budget.</summary>
public enum ProtectedBudget
{
    /// <summary>Protected tokens are kept in addition to the budget.</summary>
    OnTop,
    /// <summary>Protected tokens are part of the budget, which is raised to their number where it is smaller.</summary>
    Inside,
}

/// <summary>What competes with what during selection.</summary>
public enum SelectionScope
{
    /// <summary>All (token, head) pairs of a sequence compete; heads end with different lengths.</summary>
    Sequence,
    /// <summary>Each head keeps its own best tokens; heads end with equal lengths.</summary>
    Head,
    /// <summary>Scores are summed over the heads and one set of tokens is kept for all of them.</summary>
    Token,
}

/// <summary>How a retention ratio r becomes a number of kept pairs.</summary>
public enum RetentionCount
{
    /// <summary>ceil(r·N) tokens a head.</summary>
    CeilingOfTokens,
    /// <summary>floor(r·N) tokens a head.</summary>
    FloorOfTokens,
    /// <summary>
    /// max(1, round(r·(N - first - last)·H)), halves to even, where H is Hkv in sequence scope and 1 otherwise.
    /// </summary>
    RoundOfUnprotected,
}

/// <summary>Weight lambda of leverage in <c>s = z(a) + lambda·z(o)</c>.</summary>
/// <param name="Fixed">The weight, or null for 1 - retention.</param>
public readonly record struct LeverageWeight(double? Fixed)
{
    /// <summary>lambda = 1 - retention: the harder the compression, the more leverage counts.</summary>
    public static LeverageWeight OneMinusRetention => new(null);

    /// <summary>A constant weight.</summary>
    public static implicit operator LeverageWeight(double weight) => new(weight);

    /// <summary>The weight at a retention.</summary>
    public double At(double retention) => Fixed ?? 1 - retention;
}

/// <summary>
/// Every choice of the method (arXiv 2507.08143 and its two published implementations), as data. Start from one of
/// <see cref="CompressionPresets"/> and change what you need with <c>with</c>.
/// </summary>
public sealed record CompressionOptions
{
    private const double MaxLeverageWeight = 1e30;

    /// <summary>
    /// Columns k of the Gaussian sketch Phi [D, k]: 16 to 128 in steps of 16. A square Phi is now and then nearly singular, so that scores with k = D lose digits to float32: fewer columns than D are also what a sketch is for.
    /// </summary>
    public required int SketchDimension { get; init; }

    /// <summary>Which Phi are distinct.</summary>
    public required SketchSharing SketchSharing { get; init; }

    /// <summary>Whether the mean key of each leverage chunk is subtracted before sketching.</summary>
    public bool CenterKeys { get; init; } = true;

    /// <summary>Tokens of a leverage chunk: 0 for the whole sequence, else 64 to 4096.</summary>
    public required int LeverageChunk { get; init; }

    /// <summary>
    /// Ridge eps added to the Gram matrix, at least <c>2^-20·trace(XᵀX)/k</c> in effect, and multiplied by 10 per head, at most
    /// 5 times, after a bad pivot.
    /// </summary>
    public required double Epsilon { get; init; }

    /// <summary>Normalisation scope of the leverage score o.</summary>
    public required NormalizationScope LeverageScope { get; init; }

    /// <summary>Tokens C of an attention chunk: 64 to 512.</summary>
    public required int AttentionChunk { get; init; }

    /// <summary>Multiplier of q·k before the softmax. The method uses 1, not 1/sqrt(D).</summary>
    public double AttentionScale { get; init; } = 1;

    /// <summary>How the query heads of a group combine.</summary>
    public required GroupReduction GroupReduction { get; init; }

    /// <summary>Whether attention scores are multiplied by the Euclidean norm of the token's value.</summary>
    public required bool WeightByValueNorm { get; init; }

    /// <summary>Width of the zero-padded mean pool over tokens, odd; 1 for none.</summary>
    public required int PoolWidth { get; init; }

    /// <summary>Normalisation scope of the attention score a.</summary>
    public required NormalizationScope AttentionScope { get; init; }

    /// <summary>Whether standard deviations divide by n - 1 instead of n.</summary>
    public bool UnbiasedStandardDeviation { get; init; }

    /// <summary>Lower bound of a standard deviation; 0 for none.</summary>
    public double StandardDeviationFloor { get; init; }

    /// <summary>Weight lambda of the leverage score: 0 to 1e30, so that weighted scores are finite in float32.</summary>
    public required LeverageWeight LeverageWeight { get; init; }

    /// <summary>Tokens at the start of every sequence that are always kept.</summary>
    public required int ProtectFirst { get; init; }

    /// <summary>Tokens at the end of every sequence that are always kept.</summary>
    public required int ProtectLast { get; init; }

    /// <summary>
    /// Whether protected tokens take part in scoring (chunks, means and deviations). When false, chunks start at
    /// <see cref="ProtectFirst"/> and end before the last protected tokens.
    /// </summary>
    public bool ScoreProtected { get; init; } = true;

    /// <summary>Whether protected tokens come out of a retention budget. Token and byte budgets always include them.</summary>
    public required ProtectedBudget ProtectedBudget { get; init; }

    /// <summary>What competes with what.</summary>
    public required SelectionScope SelectionScope { get; init; }

    /// <summary>How a retention ratio is rounded to a count.</summary>
    public required RetentionCount RetentionCount { get; init; }

    /// <summary>Every head keeps at least this many tokens, or all it has.</summary>
    public int MinTokensPerHead { get; init; }

    /// <summary>Seed of Phi.</summary>
    public ulong Seed { get; init; }

    /// <summary>Checks every option by itself.</summary>
    /// <exception cref="CompactorException">An option is out of range; the message names it and its range.</exception>
    public void Validate()
    {
        InSteps(nameof(SketchDimension), SketchDimension, 16, 128, 16);
        Defined(nameof(SketchSharing), SketchSharing);
        if (LeverageChunk != 0)
            InRange(nameof(LeverageChunk), LeverageChunk, 64, 4096, " (or 0 for the whole sequence)");
        Finite(nameof(Epsilon), Epsilon, minimum: 0);
        Defined(nameof(LeverageScope), LeverageScope);
        InRange(nameof(AttentionChunk), AttentionChunk, 64, 512);
        Finite(nameof(AttentionScale), AttentionScale, minimum: double.Epsilon);
        Defined(nameof(GroupReduction), GroupReduction);
        if (PoolWidth < 1 || PoolWidth > 63 || int.IsEvenInteger(PoolWidth))
            throw Invalid(nameof(PoolWidth), PoolWidth, "an odd width from 1 (no pooling) to 63");
        Defined(nameof(AttentionScope), AttentionScope);
        Finite(nameof(StandardDeviationFloor), StandardDeviationFloor, minimum: 0);
        if (LeverageWeight.Fixed is { } weight)
            if (!(weight >= 0 && weight <= MaxLeverageWeight))
                throw Invalid(nameof(LeverageWeight), weight, $"a number from 0 to {MaxLeverageWeight}");
        InRange(nameof(ProtectFirst), ProtectFirst, 0, int.MaxValue / 2);
        InRange(nameof(ProtectLast), ProtectLast, 0, int.MaxValue / 2);
        Defined(nameof(ProtectedBudget), ProtectedBudget);
        Defined(nameof(SelectionScope), SelectionScope);
        Defined(nameof(RetentionCount), RetentionCount);
        InRange(nameof(MinTokensPerHead), MinTokensPerHead, 0, int.MaxValue);
    }

    private static void Finite(string name, double value, double minimum)
    {
        if (!double.IsFinite(value) || value < minimum)
            throw Invalid(name, value, minimum > 0 ? "a finite number above 0" : "a finite number, 0 or more");
    }

    private static void InRange(string name, int value, int low, int high, string also = "")
    {
        if (value < low || value > high)
            throw Invalid(name, value, (high >= int.MaxValue / 2 ? $"{low} or more" : $"{low} to {high}") + also);
    }

    private static void InSteps(string name, int value, int low, int high, int step)
    {
        if (value < low || value > high || value % step != 0)
            throw Invalid(name, value, $"{low} to {high} in steps of {step}");
    }

    private static void Defined<T>(string name, T value) where T : struct, Enum
    {
        if (!Enum.IsDefined(value))
            throw Invalid(name, value, "one of " + string.Join(", ", Enum.GetNames<T>()));
    }

    private static CompactorException Invalid<T>(string name, T value, string allowed) =>
        CompactorException.Argument($"{name} is {value}; use {allowed}.");
}
