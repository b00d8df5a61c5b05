using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>Fusion and selection.</summary>
public sealed unsafe partial class GpuBackend
{
    /// <inheritdoc/>
    public override FuseStatus Fuse(LayerPlan plan, BufferView<float>? leverage, BufferView<float>? attention, in TensorView value, BufferView<float> scores)
    {
        var (device, shape, options) = (_plans.Of(plan), plan.Shape, plan.Options);
        RequirePairs(shape, scores);
        if (shape.IsRagged)
            leverage = RequireLeverageAlone(leverage, attention);
        else if (leverage is null && attention is null)
            throw CompactorException.Argument("Fusing needs leverage scores, attention scores, or both.");
        Follow();
        using var turn = _workspace.Turn.EnterScope();
        var (layout, zeros) = (device.FuseWorkspace, device.Counters);
        ulong work = _workspace.Take(layout), counters = _counters.Take(zeros), norms = 0;
        if (attention is not null && options.WeightByValueNorm)
            ValueNorms(device, shape, value, norms = work + layout[2]);
        var parameters = new FuseParams
        {
            Segments = device.FuseTakesDigits ? WithDigits(device, device.Whole) : device.Whole.Of(device),
            ValueNorms = norms,
            Weights = device.Weights(alone: attention is null),
            Scores = (ulong)scores.Address,
            Status = StatusAddress,
            NonFinite = NonFiniteAddress,
            DeviationFloor = options.StandardDeviationFloor,
            ProtectFirst = options.ProtectFirst,
            ProtectLast = options.ProtectLast,
            ScoreProtected = options.ScoreProtected ? 1 : 0,
            Unbiased = options.UnbiasedStandardDeviation ? 1 : 0,
            PoolWidth = options.PoolWidth,
        };
        if (leverage is { } o)
            parameters.Leverage = device.Leverage.Of(device.Tables, o, work + layout[0], counters + zeros[2]);
        if (attention is { } a)
            parameters.Attention = device.Attention!.Of(device.Tables, a, work + layout[1], counters + zeros[3]);
        var pass = FuseTerm.Pass(Math.Max(leverage is null ? 0 : device.Leverage.Tiles, attention is null ? 0 : device.Attention!.Tiles));
        Launch(FuseTerm.Variant("fuse_statistics"), pass, parameters);
        Launch(FuseTerm.Variant("fuse_scores"), device.Whole.Pass(PairSegments.SharedBytes), parameters);
        return default;
    }

    /// <inheritdoc/>
    public override void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets) =>
        Select(plan, scores, keptIndices, keptOffsets, fused: false);

    /// <inheritdoc/>
    internal override void SelectFused(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets) =>
        Select(plan, scores, keptIndices, keptOffsets, fused: true);

    private void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets, bool fused)
    {
        var (device, shape) = (_plans.Of(plan), plan.Shape);
        RequirePairs(shape, scores);
        if (keptIndices.Length != plan.KeptPairs || keptOffsets.Length != shape.Sequences * shape.KvHeads + 1)
            throw CompactorException.Argument(
                $"Kept indices and offsets hold {keptIndices.Length} and {keptOffsets.Length} entries; the plan needs {plan.KeptPairs} and {shape.Sequences * shape.KvHeads + 1}.");
        Follow();
        if (shape.Sequences == 0)
        {
            Clear(keptOffsets);
            return;
        }
        using var turn = _workspace.Turn.EnterScope();
        var layout = device.SelectWorkspace;
        ulong work = _workspace.Take(layout), derived = work + layout[2];
        var parameters = new SelectParams
        {
            Scores = (ulong)scores.Address,
            Counts = work + layout[0],
            TileTies = work + layout[1],
            KeptIndices = (ulong)keptIndices.Address,
            KeptOffsets = (ulong)keptOffsets.Address,
            Copies = 1,
        };
        if (plan.Options.SelectionScope == SelectionScope.Token)
        {
            Launch(PairSegments.Selection("select_token_sums"), new LaunchShape((shape.Tokens + PairSegments.Threads - 1) / PairSegments.Threads, PairSegments.Threads, 0), new SelectTokenSumsParams
            {
                Scores = (ulong)scores.Address,
                Sums = derived,
                Tokens = shape.Tokens,
                Heads = shape.KvHeads,
            });
            (parameters.Scores, parameters.Copies) = (derived, shape.KvHeads);
        }
        else if (device.Raised is { } raised)
        {
            SelectFrom(device, raised, "select_raise", parameters with { KeptIndices = derived, KeptOffsets = 0 });
            (parameters.Scores, parameters.KeysGiven) = (derived, 1);
        }
        SelectFrom(device, device.Segments, "select_write", parameters, firstRound: fused && device.FuseTakesDigits ? 1 : 0);
    }

    private void SelectFrom(DevicePlan device, PairSegments segments, string write, SelectParams parameters, int firstRound = 0)
    {
        parameters.Segments = WithDigits(device, segments);
        for (parameters.Round = firstRound; parameters.Round < 3; parameters.Round++)
            Launch(PairSegments.Selection("select_digits"), segments.Pass(PairSegments.SharedBytes), parameters);
        Launch(PairSegments.Selection("select_count"), segments.Pass(PairSegments.SharedBytes), parameters);
        Launch(PairSegments.Selection(write), segments.Pass(PairSegments.ListingSharedBytes), parameters);
    }

    private DeviceSegments WithDigits(DevicePlan device, PairSegments segments)
    {
        ulong zeros = _counters.Take(device.Counters);
        return segments.Of(device) with { Histograms = zeros + device.Counters[0], Counters = zeros + device.Counters[1] };
    }

    private void ValueNorms(DevicePlan device, LayerShape shape, in TensorView value, ulong norms) =>
        Launch(ValueNormsLaunch.Variant(shape.HeadDim, value.ElementType), ValueNormsLaunch.Shape(shape.Pairs), new ValueNormsParams
        {
            Value = new(value),
            Starts = device.CuSeqlens,
            Norms = norms,
            Sequences = shape.Sequences,
            Heads = shape.KvHeads,
        });
}
