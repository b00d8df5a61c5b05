using System.Runtime.CompilerServices;
using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>
/// Attention of new query tokens over ragged paged heads: <c>out = softmax(scale·q·k)·V</c>, per query head, over the slots its KV head holds up to the token's own.
/// Query rows are (token, head of the group) pairs; a tile of them shares each key and value row. Tiles of sequences with up to 64 rows a KV head, decoding among them, are split into
/// runs of at most 1024 slots; longer ones have tiles enough. Runs leave (maximum, sum, weighted values), which are merged in order, so a result depends on the head's own
/// length and the sequence's own new tokens alone.
/// Bytes: every key and value once a tile. Flops: 4·D a (row, visible slot).
/// </summary>
internal static unsafe class CpuPagedAttention<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    private const int SplitSlots = 1024, SplitRows = 64, TileRows = 32;

    /// <summary>Tokens <c>FirstToken</c> on of the packed queries for one KV head; the first of them sees <c>Limit</c> slots, each next one more.</summary>
    private readonly record struct Tile(int Head, int TableRow, int FirstToken, int Tokens, int Limit, int FirstRun, int Runs, long FirstPartial);

    private readonly record struct Run(int Tile, int First, int Count);

    /// <param name="workers">Threads and scratch.</param>
    /// <param name="cache">Keys and values.</param>
    /// <param name="query"><c>[Nq, Hq, D]</c>.</param>
    /// <param name="kvHeads">Hkv.</param>
    /// <param name="queryStarts"><c>[B+1]</c>, or empty where every sequence has one token.</param>
    /// <param name="tables">Tables and lengths.</param>
    /// <param name="options">Options.</param>
    /// <param name="output"><c>[Nq, Hq, D]</c>.</param>
    /// <param name="logSumExp"><c>[Nq, Hq]</c>, or null.</param>
    public static void Attend(Workers workers, PagedView cache, TensorView query, int kvHeads, ReadOnlySpan<int> queryStarts, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        int dim = cache.Dim, group = query.Heads / kvHeads;
        var (tiles, runs) = Deal(queryStarts.IsEmpty ? query.Tokens : queryStarts.Length - 1, queryStarts, kvHeads, group, tables);
        float scale = (float)((options.Scale ?? 1 / Math.Sqrt(dim)) * Math.Log2(Math.E));
        float softCap = (float)((options.SoftCap ?? 0) * Math.Log2(Math.E));
        using var partials = workers.Rent(Math.Max(1, tiles.Count == 0 ? 0 : tiles[^1].FirstPartial + (long)tiles[^1].Tokens * group * tiles[^1].Runs) * (dim + 2) * sizeof(float));
        nint partial = partials.Address;
        int slots = Math.Min(cache.BlockSize, SplitSlots), columns = (slots + TLanes.Count - 1) / TLanes.Count * TLanes.Count, mostRows = Math.Max(group, TileRows);
        long scratchFloats = (long)mostRows * (dim + columns) + (long)slots * dim;
        int reach = options.Window?.Tokens ?? 0;
        nint queryPositions = options.Window?.QueryPositions.Address ?? 0, slotPositions = options.Window?.SlotPositions.Address ?? 0;

        workers.Run(runs.Count, scratchFloats * sizeof(float), (i, scratch) =>
        {
            var run = runs[i];
            var tile = tiles[run.Tile];
            int rows = tile.Tokens * group;
            float* queries = (float*)scratch, logits = queries + mostRows * dim, block = logits + (long)mostRows * columns;
            float* maximum = (float*)partial + (tile.FirstPartial + (long)(i - tile.FirstRun) * rows) * (dim + 2), sum = maximum + rows, weighted = sum + rows;
            for (int row = 0; row < rows; row++)
                RowLoader<TLanes, TVector>.Load(query, 0, 0, tile.FirstToken + row / group, 1, tile.Head * group + row % group, queries + row * dim);
            new Span<float>(maximum, rows).Fill(float.NegativeInfinity);
            new Span<float>(sum, rows * (dim + 1)).Clear();
            int* table = (int*)tables.Tables.Address + (long)tile.TableRow * tables.RowStride;
            int* asked = (int*)queryPositions + tile.FirstToken;
            for (int slot = run.First, count; slot < run.First + run.Count; slot += count)
            {
                int inBlock = slot % cache.BlockSize, held = table[slot / cache.BlockSize];
                count = Math.Min(Math.Min(slots, cache.BlockSize - inBlock), run.First + run.Count - slot);
                int* positions = reach > 0 ? (int*)slotPositions + (long)held * cache.BlockSize + inBlock : null;
                // Query positions ascend: the first token of the tile sees farthest back.
                if (reach > 0 && !new ReadOnlySpan<int>(positions, count).ContainsAnyExceptInRange(int.MinValue, asked[0] - reach))
                    continue;
                nint offset = (nint)cache.Offset(held, inBlock, tile.Head);
                var view = new TensorView(cache.Keys + offset, cache.ElementType, count, 1, dim, cache.SlotStride, 0);
                RowLoader<TLanes, TVector>.Load(view, 0, 0, 0, count, 0, block);
                for (int row = 0; row < rows; row++)
                    Logits(queries + row * dim, block, Seen(tile, row, slot, count), dim, scale, softCap, logits + (long)row * columns);
                RowLoader<TLanes, TVector>.Load(view with { Address = cache.Values + offset }, 0, 0, 0, count, 0, block);
                for (int row = 0; row < rows; row++)
                    Accumulate(logits + (long)row * columns, positions, reach > 0 ? asked[row / group] - reach : 0, block, Seen(tile, row, slot, count), dim,
                        ref maximum[row], ref sum[row], weighted + row * dim);
            }

            int Seen(in Tile of, int row, int slot, int count) => Math.Clamp(of.Limit + row / group - slot, 0, count);
        });
        workers.Run(tiles.Count, dim * sizeof(double), (i, scratch) =>
            Merge(tiles[i], (float*)partial, group, kvHeads, dim, (float*)(options.Sinks?.Address ?? 0), new Span<double>((void*)scratch, dim), (float*)output.Address, (float*)(logSumExp?.Address ?? 0)));
    }

    /// <summary>Deals query rows to tiles, and tiles to runs of slots.</summary>
    private static (List<Tile> Tiles, List<Run> Runs) Deal(int sequences, ReadOnlySpan<int> queryStarts, int kvHeads, int group, PagedTables tables)
    {
        int rowsPerSequence = sequences == 0 ? 1 : (int)(tables.Lengths.Length / sequences), tileTokens = Math.Max(1, TileRows / group);
        var lengths = tables.Lengths.AsSpan();
        List<Tile> tiles = [];
        List<Run> runs = [];
        long partials = 0;
        for (int b = 0; b < sequences; b++)
        {
            int start = queryStarts.IsEmpty ? b : queryStarts[b], tokens = queryStarts.IsEmpty ? 1 : queryStarts[b + 1] - start;
            for (int h = 0; h < kvHeads; h++)
                for (int first = 0; first < tokens; first += tileTokens)
                {
                    int row = b * rowsPerSequence + (rowsPerSequence == 1 ? 0 : h), own = Math.Min(tileTokens, tokens - first);
                    int limit = lengths[row] - tokens + first + 1, end = limit + own - 1, length = (long)tokens * group <= SplitRows ? SplitSlots : end, firstRun = runs.Count;
                    for (int slot = 0; slot < end; slot += length)
                        runs.Add(new Run(tiles.Count, slot, Math.Min(length, end - slot)));
                    tiles.Add(new Tile(h, row, start + first, own, limit, firstRun, runs.Count - firstRun, partials));
                    partials += (long)(runs.Count - firstRun) * own * group;
                }
        }
        return (tiles, runs);
    }

    /// <summary>Base-2 logits of a query row over <paramref name="count"/> keys, −inf beyond them up to whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Logits(float* query, float* key, int count, int dim, float scale, float softCap, float* logits)
    {
        int j = 0;
        for (; j + 4 <= count; j += 4, key += 4 * dim)
        {
            TVector a = TLanes.Broadcast(0), b = a, c = a, e = a;
            for (int d = 0; d < dim; d += TLanes.Count)
            {
                var q = TLanes.Load(query + d);
                a = TLanes.MultiplyAdd(q, TLanes.Load(key + d), a);
                b = TLanes.MultiplyAdd(q, TLanes.Load(key + dim + d), b);
                c = TLanes.MultiplyAdd(q, TLanes.Load(key + 2 * dim + d), c);
                e = TLanes.MultiplyAdd(q, TLanes.Load(key + 3 * dim + d), e);
            }
            (logits[j], logits[j + 1], logits[j + 2], logits[j + 3]) = (scale * TLanes.Sum(a), scale * TLanes.Sum(b), scale * TLanes.Sum(c), scale * TLanes.Sum(e));
        }
        for (; j < count; j++, key += dim)
        {
            var sum = TLanes.Broadcast(0);
            for (int d = 0; d < dim; d += TLanes.Count)
                sum = TLanes.MultiplyAdd(TLanes.Load(query + d), TLanes.Load(key + d), sum);
            logits[j] = scale * TLanes.Sum(sum);
        }
        if (softCap > 0)
            for (int i = 0; i < count; i++)
                logits[i] = softCap * MathF.Tanh(logits[i] / softCap);
        for (; j % TLanes.Count != 0; j++)
            logits[j] = float.NegativeInfinity;
    }

    /// <summary>Folds values into the running (maximum, sum, weighted values) of a query row; slots at positions up to <paramref name="oldest"/> are not seen where there are positions.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Accumulate(float* logits, int* positions, int oldest, float* values, int count, int dim, ref float maximum, ref float sum, float* weighted)
    {
        if (positions is not null)
            for (int j = 0; j < count; j++)
                if (positions[j] <= oldest)
                    logits[j] = float.NegativeInfinity;
        var top = TLanes.Broadcast(float.NegativeInfinity);
        for (int j = 0; j < count; j += TLanes.Count)
            top = TLanes.Max(top, TLanes.Load(logits + j));
        float now = MathF.Max(maximum, TLanes.MaxLane(top));
        if (float.IsNegativeInfinity(now))
            return;
        float shrink = MathF.Pow(2, maximum - now);
        maximum = now;
        var shift = TLanes.Broadcast(-now);
        for (int j = 0; j < count; j += TLanes.Count)
            TLanes.Store(TLanes.Exp2(TLanes.Add(TLanes.Load(logits + j), shift)), logits + j);
        if (positions is not null)
            for (int j = 0; j < count; j++)
                if (positions[j] <= oldest)
                    logits[j] = 0;
        var total = TLanes.Broadcast(0);
        for (int j = 0; j < count; j += TLanes.Count)
            total = TLanes.Add(total, TLanes.Load(logits + j));
        sum = sum * shrink + TLanes.Sum(total);

        int at = 0, n = TLanes.Count;
        var shrinks = TLanes.Broadcast(shrink);
        for (; at + 4 * n <= dim; at += 4 * n)
        {
            float* value = values + at, to = weighted + at;
            TVector a = TLanes.Multiply(TLanes.Load(to), shrinks), b = TLanes.Multiply(TLanes.Load(to + n), shrinks);
            TVector c = TLanes.Multiply(TLanes.Load(to + 2 * n), shrinks), e = TLanes.Multiply(TLanes.Load(to + 3 * n), shrinks);
            for (int j = 0; j < count; j++, value += dim)
            {
                var weight = TLanes.Broadcast(logits[j]);
                a = TLanes.MultiplyAdd(weight, TLanes.Load(value), a);
                b = TLanes.MultiplyAdd(weight, TLanes.Load(value + n), b);
                c = TLanes.MultiplyAdd(weight, TLanes.Load(value + 2 * n), c);
                e = TLanes.MultiplyAdd(weight, TLanes.Load(value + 3 * n), e);
            }
            TLanes.Store(a, to);
            TLanes.Store(b, to + n);
            TLanes.Store(c, to + 2 * n);
            TLanes.Store(e, to + 3 * n);
        }
        for (; at < dim; at += n)
        {
            var run = TLanes.Multiply(TLanes.Load(weighted + at), shrinks);
            float* value = values + at;
            for (int j = 0; j < count; j++, value += dim)
                run = TLanes.MultiplyAdd(TLanes.Broadcast(logits[j]), TLanes.Load(value), run);
            TLanes.Store(run, weighted + at);
        }
    }

    /// <summary>Merges the runs of a tile's rows by their log-sum-exp, in order, and the sink. A row that sees nothing gives 0, and −inf where there is no sink.</summary>
    private static void Merge(in Tile tile, float* partial, int group, int kvHeads, int dim, float* sinks, Span<double> merged, float* output, float* logSumExp)
    {
        int rows = tile.Tokens * group;
        for (int row = 0; row < rows; row++)
        {
            int queryHead = tile.Head * group + row % group;
            double sink = sinks is null ? double.NegativeInfinity : sinks[queryHead] * Math.Log2(Math.E), maximum = sink;
            for (int i = 0; i < tile.Runs; i++)
                maximum = Math.Max(maximum, Part(tile, i)[row]);
            long to = (long)(tile.FirstToken + row / group) * kvHeads * group + queryHead;
            bool empty = double.IsNegativeInfinity(maximum);
            double sum = sinks is null || empty ? 0 : Math.Pow(2, sink - maximum);
            merged.Clear();
            for (int i = 0; i < tile.Runs && !empty; i++)
            {
                float* part = Part(tile, i);
                double weight = Math.Pow(2, part[row] - maximum);
                sum += weight * part[rows + row];
                for (int d = 0; d < dim; d++)
                    merged[d] += weight * part[2 * rows + row * dim + d];
            }
            for (int d = 0; d < dim; d++)
                output[to * dim + d] = empty ? 0 : (float)(merged[d] / sum);
            if (logSumExp is not null)
                logSumExp[to] = empty ? float.NegativeInfinity : (float)((maximum + Math.Log2(sum)) / Math.Log2(Math.E));
        }

        float* Part(in Tile of, int run) => partial + (of.FirstPartial + (long)run * rows) * (dim + 2);
    }
}
