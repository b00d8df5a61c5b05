using Compactor.Native.Paging;

namespace Compactor.Native.Gpu;

/// <summary>Attention over a paged cache.</summary>
public sealed unsafe partial class GpuBackend
{
    /// <inheritdoc/>
    public override void DecodeAttention(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, DecodeOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null)
    {
        CheckDecode(cache, query, kvHeads, tables, options, output, logSumExp);
        RequireHeadDim("The cache", cache.Dim);
        if (query.ElementType != cache.ElementType)
            throw CompactorException.Unsupported($"Queries are {query.ElementType} and the cache {cache.ElementType}; the cuda backend attends with queries of the cache's type.");
        RequireAligned("The query", query);
        RequireAligned("The cache", new TensorView(cache.Keys | cache.Values, cache.ElementType, 0, 0, cache.Dim, cache.BlockStride, cache.SlotStride, cache.HeadStride));
        int group = query.Heads / kvHeads, queryRows = query.Tokens * query.Heads, most = DecodeAttentionLaunch.MostSplits(tables.RowStride, cache.BlockSize);
        var layout = new WorkspaceLayout(sizeof(ulong) * (long)queryRows * most, sizeof(float) * (long)queryRows * most * cache.Dim);
        Follow();
        using var turn = _workspace.Turn.EnterScope();
        ulong work = _workspace.Take(layout);
        var parameters = new AttentionParams
        {
            Query = new(query),
            Cache = new(cache, default),
            Tables = new(tables),
            Output = (ulong)output.Address,
            LogSumExp = logSumExp is { } lse ? (ulong)lse.Address : 0,
            PartialSums = work + layout[0],
            PartialValues = work + layout[1],
            Scale = (float)((options.Scale ?? 1 / Math.Sqrt(cache.Dim)) * Math.Log2(Math.E)),
            SoftCap = (float)((options.SoftCap ?? 0) * Math.Log2(Math.E)),
            Sequences = query.Tokens,
            KvHeads = kvHeads,
            BlockSize = cache.BlockSize,
            MostSplits = most,
            QueryTokens = query.Tokens,
        };
        var kernel = DecodeAttentionLaunch.Variant(cache.Dim, cache.ElementType, group);
        int threads = DecodeAttentionLaunch.Threads(cache.Dim, cache.ElementType), shared = DecodeAttentionLaunch.SharedBytes(cache.Dim, cache.ElementType, group);
        long items = (long)query.Tokens * kvHeads * DecodeAttentionLaunch.Tiles(group, cache.ElementType) * most;
        if (items > 0)
        {
            long resident = (long)_driver.Limits.Multiprocessors * Math.Max(1, _driver.Load(kernel).BlocksPerMultiprocessor(threads, shared));
            Launch(kernel, new LaunchShape((int)Math.Min(items, resident), threads, shared), parameters);
        }
        Launch(DecodeAttentionLaunch.Variant(cache.Dim, cache.ElementType, group, merge: true), DecodeAttentionLaunch.Merge(queryRows), parameters);
    }
}
