namespace Compactor.Native.Compression;

/// <summary>How much of one layer of each sequence is kept.</summary>
public readonly record struct Budget
{
    private enum Unit { Ratio, Tokens, Bytes }

    private readonly Unit _unit;
    private readonly double _amount;

    private Budget(Unit unit, double amount) => (_unit, _amount) = (unit, amount);

    /// <summary>Keep a share of the tokens.</summary>
    /// <param name="retention">From 0 (only what is protected) to 1 (everything: nothing is scored).</param>
    /// <exception cref="CompactorException">The ratio is not in [0, 1].</exception>
    public static Budget Retention(double retention) => retention is >= 0 and <= 1
        ? new(Unit.Ratio, retention)
        : throw CompactorException.Argument($"Retention is {retention}; use a ratio from 0 to 1 (0.5 keeps half).");

    /// <summary>Keep a number of tokens a head, protected tokens included, on average over heads in sequence scope.</summary>
    /// <exception cref="CompactorException">The number is below 1.</exception>
    public static Budget Tokens(int tokensPerHead) => tokensPerHead >= 1
        ? new(Unit.Tokens, tokensPerHead)
        : throw CompactorException.Argument($"The token budget is {tokensPerHead}; use 1 or more tokens a head.");

    /// <summary>Keep what fits in a number of bytes of keys and values together, protected tokens included; never exceeded.</summary>
    /// <exception cref="CompactorException">The number is below 1.</exception>
    public static Budget Bytes(long bytes) => bytes >= 1
        ? new(Unit.Bytes, bytes)
        : throw CompactorException.Argument($"The byte budget is {bytes}; use 1 or more bytes.");

    /// <summary>Whether this budget keeps everything whatever the input is.</summary>
    public bool KeepsEverything => _unit == Unit.Ratio && _amount == 1;

    /// <summary>
    /// The share of N tokens this budget stands for, in [0, 1]: what <see cref="LeverageWeight.OneMinusRetention"/> refers to.
    /// </summary>
    /// <param name="tokens">Tokens N of the sequence, above 0.</param>
    /// <param name="bytesPerToken">Bytes of one token's keys and values over all KV heads.</param>
    public double RetentionOf(int tokens, long bytesPerToken) => _unit switch
    {
        Unit.Ratio => _amount,
        Unit.Tokens => Math.Min(1, _amount / tokens),
        _ => Math.Min(1, _amount / ((double)tokens * bytesPerToken)),
    };

    /// <summary>
    /// Kept (token, head) pairs of one sequence (design: counts in double with a slack of 1e-9, halves to even, clamped to what
    /// exists, raised to what is protected).
    /// </summary>
    /// <param name="options">Rounding rule, protection, scope and minimum.</param>
    /// <param name="tokens">Tokens N of the sequence.</param>
    /// <param name="kvHeads">KV heads Hkv.</param>
    /// <param name="bytesPerPair">Bytes of one token's key and value in one head.</param>
    /// <returns>A count from 0 to N·Hkv; a multiple of Hkv in head and token scope.</returns>
    /// <exception cref="CompactorException">A byte budget, or a token budget with a minimum a head, that cannot be met.</exception>
    public long Count(CompressionOptions options, int tokens, int kvHeads, long bytesPerPair) =>
        Count(options, tokens, kvHeads, bytesPerPair, out _);

    /// <param name="options">Rounding rule, protection, scope and minimum.</param>
    /// <param name="tokens">Tokens N of the sequence.</param>
    /// <param name="kvHeads">KV heads Hkv.</param>
    /// <param name="bytesPerPair">Bytes of one token's key and value in one head.</param>
    /// <param name="requested">The count before it is raised to the protected or minimum pairs, from 0 to N·Hkv.</param>
    internal long Count(CompressionOptions options, int tokens, int kvHeads, long bytesPerPair, out long requested)
    {
        long all = (long)tokens * kvHeads, protectedPairs = Protected(options, tokens) * kvHeads, floor = Floor(options, tokens) * kvHeads;
        if (KeepsEverything)
            return requested = all;
        requested = Math.Clamp(Requested(options, all, protectedPairs, kvHeads, bytesPerPair), 0, all);
        RequireRoom(requested, floor, bytesPerPair, all, kvHeads);
        return protectedPairs == all ? all : Math.Clamp(Math.Max(requested, floor), 0, all);
    }

    /// <summary>
    /// Kept pairs of one sequence whose heads hold different numbers n_h: as for N tokens in every head, with N = sum(n_h)/Hkv, the average, which need not be whole, and with
    /// sums over heads of what is protected, min(n_h, first + last), or the least, where Hkv times one head's stands otherwise.
    /// In head scope each head keeps its count or all it has; what it lacks no other head gets.
    /// </summary>
    /// <param name="options">Rounding rule, protection, scope and minimum.</param>
    /// <param name="lengths"><c>[Hkv]</c> tokens each head holds.</param>
    /// <param name="bytesPerPair">Bytes of one token's key and value in one head.</param>
    /// <param name="keptOfHeads">Receives <c>[Hkv]</c> counts in head scope.</param>
    /// <param name="requested">The count before it is raised to the protected or minimum pairs.</param>
    internal long CountRagged(CompressionOptions options, ReadOnlySpan<int> lengths, long bytesPerPair, Span<int> keptOfHeads, out long requested)
    {
        long all = 0, protectedPairs = 0, floor = 0, largestFloor = 0;
        foreach (int length in lengths)
        {
            all += length;
            protectedPairs += Protected(options, length);
            floor += Floor(options, length);
            largestFloor = Math.Max(largestFloor, Floor(options, length));
        }
        if (KeepsEverything)
        {
            lengths.CopyTo(keptOfHeads);
            return requested = all;
        }
        int heads = lengths.Length;
        long count = Math.Max(0, Requested(options, all, protectedPairs, heads, bytesPerPair));
        if (options.SelectionScope == SelectionScope.Sequence)
        {
            requested = Math.Min(count, all);
            RequireRoom(requested, floor, bytesPerPair, all, heads);
            return Math.Clamp(Math.Max(requested, floor), 0, all);
        }
        RequireRoom(count, Math.Max(floor, largestFloor * heads), bytesPerPair, all, heads);
        requested = 0;
        long kept = 0;
        for (int h = 0; h < heads; h++)
        {
            requested += Math.Min(count / heads, lengths[h]);
            kept += keptOfHeads[h] = (int)Math.Min(Math.Max(count / heads, Floor(options, lengths[h])), lengths[h]);
        }
        return kept;
    }

    /// <summary>Bytes of what is always kept of one sequence of a layer: protected tokens and the least a head keeps.</summary>
    internal static long FloorBytes(CompressionOptions options, int tokens, int kvHeads, long bytesPerPair) => Floor(options, tokens) * kvHeads * bytesPerPair;

    private static long Protected(CompressionOptions options, int tokens) => Math.Min(tokens, (long)options.ProtectFirst + options.ProtectLast);

    private static long Floor(CompressionOptions options, int tokens) => Math.Max(Protected(options, tokens), Math.Min(tokens, options.MinTokensPerHead));

    /// <summary>What the budget asks for of all pairs; in equal-length scopes a multiple of the heads.</summary>
    private long Requested(CompressionOptions options, long pairs, long protectedPairs, int kvHeads, long bytesPerPair)
    {
        const double slack = 1e-9;
        // One competition has `heads` heads in it; equal-length scopes count one head and multiply.
        int heads = options.SelectionScope == SelectionScope.Sequence ? kvHeads : 1;
        int competitions = kvHeads / heads;
        double tokens = (double)pairs / kvHeads;
        switch (_unit)
        {
            case Unit.Ratio:
                long count = options.RetentionCount switch
                {
                    RetentionCount.CeilingOfTokens => (long)Math.Ceiling(_amount * tokens - slack) * heads,
                    RetentionCount.FloorOfTokens => (long)Math.Floor(_amount * tokens + slack) * heads,
                    _ => Math.Max(1, RoundHalfToEven(_amount * (pairs - protectedPairs) / competitions, slack)),
                };
                count *= competitions;
                return options.ProtectedBudget != ProtectedBudget.OnTop ? count
                    : count + (protectedPairs + competitions - 1) / competitions * competitions;
            case Unit.Tokens:
                return options.MinTokensPerHead <= _amount ? (long)_amount * kvHeads
                    : throw new CompactorException(CompactorStatus.BudgetNotMet,
                        $"A budget of {_amount} tokens a head cannot keep the minimum of {options.MinTokensPerHead} tokens a head; raise the budget or lower the minimum.");
            default:
                return (long)(_amount / bytesPerPair) / competitions * competitions;
        }
    }

    private void RequireRoom(long count, long floor, long bytesPerPair, long pairs, int kvHeads)
    {
        if (_unit == Unit.Bytes && count < floor)
            throw new CompactorException(CompactorStatus.BudgetNotMet,
                $"A budget of {_amount} bytes cannot hold the {floor} protected or minimum (token, head) pairs of a sequence of {(double)pairs / kvHeads:0.#} tokens, " +
                $"which take {floor * bytesPerPair} bytes; raise the budget, or lower the protected or minimum token counts.");
    }

    private static long RoundHalfToEven(double value, double slack)
    {
        double nearestHalf = Math.Floor(value) + 0.5;
        return (long)Math.Round(Math.Abs(value - nearestHalf) <= slack ? nearestHalf : value, MidpointRounding.ToEven);
    }

    /// <inheritdoc/>
    public override string ToString() => _unit switch
    {
        Unit.Ratio => $"retention {_amount}",
        Unit.Tokens => $"{_amount} tokens a head",
        _ => $"{_amount} bytes",
    };
}
