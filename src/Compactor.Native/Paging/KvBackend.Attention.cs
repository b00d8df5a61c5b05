using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native;

/// <summary>What every backend checks of a call of attention over a paged cache.</summary>
public abstract partial class KvBackend
{
    /// <summary>Checks the shapes of a decode attention call against each other.</summary>
    /// <exception cref="CompactorException">They do not fit; the message names what.</exception>
    private protected static void CheckDecode(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        _ = new LayerShape([0, query.Tokens], query.Heads, kvHeads, cache.Dim, cache.ElementType);
        CheckAttention(query.Tokens, cache, query, kvHeads, tables, options, output, logSumExp);
    }

    /// <summary>Checks the shapes of an extend attention call against each other.</summary>
    /// <exception cref="CompactorException">They do not fit; the message names what.</exception>
    private protected static void CheckExtend(ExtendPlan plan, in PagedView cache, in TensorView query, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        _ = new LayerShape([0, query.Tokens], plan.QueryHeads, plan.KvHeads, cache.Dim, cache.ElementType);
        if (query.Tokens != plan.QueryTokens || query.Heads != plan.QueryHeads)
            throw CompactorException.Argument($"Queries are [{query.Tokens}, {query.Heads}, {query.Dim}] (tokens, heads, dim); the plan is for {plan.QueryTokens} tokens of {plan.QueryHeads} heads.");
        CheckAttention(plan.Sequences, cache, query, plan.KvHeads, tables, options, output, logSumExp);
    }

    /// <summary>Checks what lies in host memory: lengths, sinks and positions. Without query starts, every sequence has one token, and heads may hold nothing.</summary>
    /// <exception cref="CompactorException">A value cannot be; the message names it.</exception>
    private protected static void CheckContents(in PagedView cache, in TensorView query, ReadOnlySpan<int> queryStarts, PagedTables tables, AttentionOptions options)
    {
        var lengths = tables.Lengths.AsSpan();
        long room = (long)tables.RowStride * cache.BlockSize;
        int sequences = queryStarts.IsEmpty ? query.Tokens : queryStarts.Length - 1, rows = sequences == 0 ? 1 : lengths.Length / sequences;
        for (int row = 0; row < lengths.Length; row++)
        {
            if (lengths[row] < 0 || lengths[row] > room)
                throw CompactorException.Argument($"A head holds {lengths[row]} tokens; its table of {tables.RowStride} blocks holds 0 to {room}.");
            if (!queryStarts.IsEmpty && lengths[row] < queryStarts[row / rows + 1] - queryStarts[row / rows])
                throw CompactorException.Argument(
                    $"Row {row} of the lengths is {lengths[row]}; its sequence brings {queryStarts[row / rows + 1] - queryStarts[row / rows]} new tokens. Store them before they attend.");
        }
        if (options.Sinks is { } sinks)
            for (int head = 0; head < sinks.Length; head++)
                if (!float.IsFinite(sinks.AsSpan()[head]))
                    throw CompactorException.Argument($"Sinks[{head}] is {sinks.AsSpan()[head]}; use finite logits, or null for none.");
        if (options.Window is not { } window)
            return;
        var positions = window.QueryPositions.AsSpan();
        for (int b = 0; b < sequences; b++)
            for (int start = queryStarts.IsEmpty ? b : queryStarts[b], end = queryStarts.IsEmpty ? b + 1 : queryStarts[b + 1], token = start; token < end; token++)
                if (positions[token] < 0 || (token > start && positions[token] < positions[token - 1]))
                    throw CompactorException.Argument(
                        $"QueryPositions[{token}] is {positions[token]}{(token > start ? $" after {positions[token - 1]}" : "")}; positions are 0 or more and ascend within a sequence.");
        for (int row = 0; row < lengths.Length; row++)
            foreach (int block in tables.Tables.AsSpan().Slice(row * tables.RowStride, (lengths[row] + cache.BlockSize - 1) / cache.BlockSize))
                if (((long)block + 1) * cache.BlockSize > window.SlotPositions.Length)
                    throw CompactorException.Argument($"SlotPositions hold {window.SlotPositions.Length} positions, in blocks of {cache.BlockSize}; row {row} of the tables lists block {block}.");
    }

    private static void CheckAttention(int sequences, in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        options.Validate();
        if (query.ElementType == ElementType.Opaque8)
            throw CompactorException.Unsupported("Queries of opaque bytes cannot attend; convert them to float32, float16 or bfloat16 first.");
        if (query.Heads == 0 || query.Dim != cache.Dim)
            throw CompactorException.Argument($"Queries are [{query.Tokens}, {query.Heads}, {query.Dim}] (tokens, heads, dim); the cache has dimension {cache.Dim} and {kvHeads} KV heads.");
        if (query.SequenceStride != 0)
            throw CompactorException.Unsupported($"Queries have a sequence stride of {query.SequenceStride}; give them packed, [tokens, heads, dim], with a token stride instead.");
        long rows = tables.Lengths.Length;
        if (rows != sequences && rows != (long)sequences * kvHeads)
            throw CompactorException.Argument($"There are {rows} lengths for {sequences} sequences of {kvHeads} KV heads; give one a (sequence, head), or one a sequence.");
        cache.Validate(kvHeads: 1);
        if (tables.RowStride < 0 || tables.Tables.Length < rows * tables.RowStride)
            throw CompactorException.Argument($"Block tables hold {tables.Tables.Length} entries; {rows} rows of {tables.RowStride} take {rows * tables.RowStride}.");
        long heads = (long)query.Tokens * query.Heads;
        if (output.Length != heads * query.Dim || (logSumExp is { } lse && lse.Length != heads))
            throw CompactorException.Argument($"The output holds {output.Length} floats and the log-sum-exp {logSumExp?.Length ?? heads}; they take {heads * query.Dim} and {heads}.");
        if (options.Sinks is { } sinks && sinks.Length != query.Heads)
            throw CompactorException.Argument($"Sinks hold {sinks.Length} logits; give one a query head, {query.Heads}.");
        if (options.Window is { } window && (window.QueryPositions.Length != query.Tokens || window.SlotPositions.Length % cache.BlockSize != 0))
            throw CompactorException.Argument($"The window has {window.QueryPositions.Length} QueryPositions for {query.Tokens} query tokens and {window.SlotPositions.Length} SlotPositions for blocks of {cache.BlockSize} slots; give one a token, and whole blocks.");
    }
}
