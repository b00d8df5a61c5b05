namespace Compactor.Native.Paging;

/// <summary>Parameters of attention over a paged cache.</summary>
public sealed record AttentionOptions
{
    /// <summary>Multiplier of q·k; null for 1/sqrt(D).</summary>
    public double? Scale { get; init; }

    /// <summary>Caps logits smoothly, <c>cap·tanh(logit / cap)</c> (Gemma 2); null for none.</summary>
    public double? SoftCap { get; init; }

    /// <summary>
    /// A logit for each query head, <c>[Hq]</c> float32, finite, in memory the backend can reach: it takes part in the softmax's sum and in the log-sum-exp, and has no value (attention
    /// sinks). It is neither scaled nor capped. Null for none.
    /// </summary>
    public BufferView<float>? Sinks { get; init; }

    /// <summary>How far back queries see; null for all slots.</summary>
    public SlidingWindow? Window { get; init; }

    /// <summary>Checks the parameters.</summary>
    /// <exception cref="CompactorException">Scale or cap is not a finite number above 0, or the window is not 1 token or more.</exception>
    public void Validate()
    {
        foreach (var (name, value) in ((string, double?)[])[(nameof(Scale), Scale), (nameof(SoftCap), SoftCap)])
            if (value is { } given && !(given > 0 && double.IsFinite(given)))
                throw CompactorException.Argument($"{name} is {given}; use a finite number above 0.");
        if (Window is { Tokens: < 1 } window)
            throw CompactorException.Argument($"Window is {window.Tokens} tokens; use 1 or more, or null for none.");
    }
}

/// <summary>
/// A window by stored position: a query at position p sees the slots whose position is above <c>p - Tokens</c>, whatever was evicted between them. All three are in memory
/// the backend can reach.
/// </summary>
/// <param name="Tokens">Positions a query sees, its own among them; 1 or more.</param>
/// <param name="SlotPositions"><c>[blocks, block_size]</c> position of each slot of the cache (<see cref="PagedCache.Slots"/>).</param>
/// <param name="QueryPositions"><c>[Nq]</c> position of each query token, 0 or more, ascending within a sequence.</param>
public readonly record struct SlidingWindow(int Tokens, BufferView<int> SlotPositions, BufferView<int> QueryPositions);
