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
        const double slack = 1e-9;
        long all = (long)tokens * kvHeads;
        int protectedTokens = (int)Math.Min(tokens, (long)options.ProtectFirst + options.ProtectLast);
        long floor = (long)Math.Max(protectedTokens, Math.Min(tokens, options.MinTokensPerHead)) * kvHeads;
        if (KeepsEverything)
            return requested = all;

        // One competition has `heads` heads in it; equal-length scopes count one head and multiply.
        int heads = options.SelectionScope == SelectionScope.Sequence ? kvHeads : 1;
        int competitions = kvHeads / heads;
        long count;
        switch (_unit)
        {
            case Unit.Ratio:
                count = options.RetentionCount switch
                {
                    RetentionCount.CeilingOfTokens => (long)Math.Ceiling(_amount * tokens - slack) * heads,
                    RetentionCount.FloorOfTokens => (long)Math.Floor(_amount * tokens + slack) * heads,
                    _ => Math.Max(1, RoundHalfToEven(_amount * Math.Max(0, tokens - protectedTokens) * heads, slack)),
                };
                count *= competitions;
                if (options.ProtectedBudget == ProtectedBudget.OnTop)
                    count += (long)protectedTokens * kvHeads;
                break;
            case Unit.Tokens:
                count = (long)_amount * kvHeads;
                if (options.MinTokensPerHead > _amount)
                    throw new CompactorException(CompactorStatus.BudgetNotMet,
                        $"A budget of {_amount} tokens a head cannot keep the minimum of {options.MinTokensPerHead} tokens a head; " +
                        "raise the budget or lower the minimum.");
                break;
            default:
                count = (long)(_amount / bytesPerPair) / competitions * competitions;
                if (count < floor)
                    throw new CompactorException(CompactorStatus.BudgetNotMet,
                        $"A budget of {_amount} bytes cannot hold the {floor} protected or minimum (token, head) pairs of a sequence of {tokens} tokens, " +
                        $"which take {floor * bytesPerPair} bytes; raise the budget, or lower the protected or minimum token counts.");
                break;
        }
        requested = Math.Clamp(count, 0, all);
        return protectedTokens == tokens ? all : Math.Clamp(Math.Max(count, floor), 0, all);
    }

    /// <summary>
    /// Shares a byte budget of a whole cache: evenly over its layers, and within a layer over the sequences in proportion to their
    /// lengths, rounded down, so that the sum never exceeds it.
    /// </summary>
    /// <param name="bytes">Bytes of keys and values of all layers and sequences together.</param>
    /// <param name="layers">Layers, 1 or more.</param>
    /// <param name="cuSeqlens"><c>[B+1]</c> packed offsets of the sequences.</param>
    /// <returns><c>[B]</c> budgets of one layer.</returns>
    /// <exception cref="CompactorException">A sequence's share is below 1 byte.</exception>
    public static Budget[] SplitBytes(long bytes, int layers, IReadOnlyList<int> cuSeqlens)
    {
        var budgets = new Budget[cuSeqlens.Count - 1];
        long layer = bytes / layers;
        for (int b = 0; b < budgets.Length; b++)
        {
            int length = cuSeqlens[b + 1] - cuSeqlens[b];
            long share = length == 0 ? 1 : (long)((Int128)layer * length / cuSeqlens[^1]);
            if (share < 1)
                throw new CompactorException(CompactorStatus.BudgetNotMet,
                    $"A budget of {bytes} bytes over {layers} layers leaves nothing for sequence {b} of {length} tokens; raise it.");
            budgets[b] = Bytes(share);
        }
        return budgets;
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
