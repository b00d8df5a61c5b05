using Compactor.Native.Paging;

namespace Compactor.Native.Gpu;

/// <summary>Attention over a paged cache.</summary>
public sealed unsafe partial class GpuBackend
{
    private readonly Kept<ExtendPlan, DeviceExtendPlan> _extendPlans;

    /// <inheritdoc/>
    public override void DecodeAttention(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null)
    {
        CheckDecode(cache, query, kvHeads, tables, options, output, logSumExp);
        var launch = PagedAttentionLaunch.Decode(cache.Dim, cache.ElementType, query.Heads / kvHeads);
        int most = PagedAttentionLaunch.MostSplits(tables.RowStride, cache.BlockSize);
        Attend(launch, (long)query.Tokens * kvHeads * launch.Tiles(tokens: 1) * most, query.Tokens, cache, query, options, new AttentionParams
        {
            Tables = new(tables),
            Output = (ulong)output.Address,
            LogSumExp = logSumExp is { } lse ? (ulong)lse.Address : 0,
            Sequences = query.Tokens,
            KvHeads = kvHeads,
            MostSplits = most,
        });
    }

    /// <inheritdoc/>
    public override void ExtendAttention(ExtendPlan plan, in PagedView cache, in TensorView query, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null)
    {
        CheckExtend(plan, cache, query, tables, options, output, logSumExp);
        int group = plan.QueryHeads / plan.KvHeads, most = PagedAttentionLaunch.MostSplits(tables.RowStride, cache.BlockSize);
        var launch = PagedAttentionLaunch.Extend(cache.Dim, cache.ElementType, group);
        long work = 0;
        for (int b = 0; b < plan.Sequences; b++)
        {
            int tokens = plan.QueryStarts[b + 1] - plan.QueryStarts[b];
            work += (long)plan.KvHeads * launch.Tiles(tokens) * (PagedAttentionLaunch.IsSplit(tokens, group) ? most : 1);
        }
        var device = _extendPlans.Of(plan);
        Attend(launch, work, device.PartialTokens, cache, query, options, new AttentionParams
        {
            Tables = new(tables),
            QueryStarts = device.QueryStarts,
            PartialStarts = device.PartialStarts,
            Output = (ulong)output.Address,
            LogSumExp = logSumExp is { } lse ? (ulong)lse.Address : 0,
            Sequences = plan.Sequences,
            KvHeads = plan.KvHeads,
            MostSplits = most,
        });
    }

    /// <param name="launch">Kernels.</param>
    /// <param name="work">Most (row, tile, split) items there can be.</param>
    /// <param name="partialTokens">Query tokens whose keys are split.</param>
    /// <param name="cache">Keys and values.</param>
    /// <param name="query">Queries.</param>
    /// <param name="options">Options.</param>
    /// <param name="parameters">What is not in the parameters before.</param>
    private void Attend(PagedAttentionLaunch launch, long work, int partialTokens, in PagedView cache, in TensorView query, AttentionOptions options, AttentionParams parameters)
    {
        RequireHeadDim("The cache", cache.Dim);
        if (query.ElementType != cache.ElementType)
            throw CompactorException.Unsupported($"Queries are {query.ElementType} and the cache {cache.ElementType}; the cuda backend attends with queries of the cache's type.");
        RequireAligned("The query", query);
        RequireAligned("The cache", new TensorView(cache.Keys | cache.Values, cache.ElementType, 0, 0, cache.Dim, cache.BlockStride, cache.SlotStride, cache.HeadStride));
        long partials = (long)partialTokens * query.Heads * parameters.MostSplits;
        var layout = new WorkspaceLayout(sizeof(ulong) * partials, sizeof(float) * partials * cache.Dim);
        Follow();
        using var turn = _workspace.Turn.EnterScope();
        ulong scratch = _workspace.Take(layout);
        parameters.Query = new(query);
        parameters.Cache = new(cache, options.Window?.SlotPositions ?? default);
        parameters.QueryPositions = (ulong)(options.Window?.QueryPositions.Address ?? 0);
        parameters.Window = options.Window?.Tokens ?? 0;
        parameters.Sinks = (ulong)(options.Sinks?.Address ?? 0);
        parameters.PartialSums = scratch + layout[0];
        parameters.PartialValues = scratch + layout[1];
        parameters.Scale = (float)((options.Scale ?? 1 / Math.Sqrt(cache.Dim)) * Math.Log2(Math.E));
        parameters.SoftCap = (float)((options.SoftCap ?? 0) * Math.Log2(Math.E));
        parameters.BlockSize = cache.BlockSize;
        parameters.QueryTokens = query.Tokens;
        if (work > 0)
        {
            long resident = (long)_driver.Limits.Multiprocessors * Math.Max(1, _driver.Load(launch.Variant).BlocksPerMultiprocessor(launch.Threads, launch.SharedBytes));
            Launch(launch.Variant, new LaunchShape((int)Math.Min(work, resident), launch.Threads, launch.SharedBytes), parameters);
        }
        Launch(launch.Merge, PagedAttentionLaunch.MergeShape(checked(query.Tokens * query.Heads)), parameters);
    }
}
