using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>Fusion and selection.</summary>
public sealed unsafe partial class GpuBackend
{
    private readonly ZeroedMemory _histograms, _segmentCounters, _scopeCounters;

    /// <inheritdoc/>
    public override FuseStatus Fuse(LayerPlan plan, BufferView<float>? leverage, BufferView<float>? attention, in TensorView value, BufferView<float> scores)
    {
        var (device, shape, options) = (_plans.Of(plan), plan.Shape, plan.Options);
        RequirePairs(shape, scores);
        if (shape.IsRagged)
            leverage = RequireLeverageAlone(leverage, attention);
        else if (leverage is null && attention is null)
            throw CompactorException.Argument("Fusing needs leverage scores, attention scores, or both.");
        using var norms = attention is not null && options.WeightByValueNorm ? ValueNorms(device, shape, value) : null;
        using var leverageWork = Allocate<byte>(leverage is null ? 0 : device.Leverage.WorkspaceBytes);
        using var attentionWork = Allocate<byte>(attention is null ? 0 : device.Attention!.WorkspaceBytes);
        int leverageScopes = leverage is null ? 0 : device.Leverage.Scopes, attentionScopes = attention is null ? 0 : device.Attention!.Scopes;
        ulong counters = _scopeCounters.Of(sizeof(uint) * (long)(leverageScopes + attentionScopes));
        var parameters = new FuseParams
        {
            Segments = device.Whole.Of(device.Tables, shape, device.CuSeqlens),
            ValueNorms = norms is null ? 0 : (ulong)norms.View.Address,
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
            parameters.Leverage = device.Leverage.Of(device.Tables, o, leverageWork.View, counters);
        if (attention is { } a)
            parameters.Attention = device.Attention!.Of(device.Tables, a, attentionWork.View, counters + sizeof(uint) * (ulong)leverageScopes);
        var pass = FuseTerm.Pass(Math.Max(leverage is null ? 0 : device.Leverage.Units, attention is null ? 0 : device.Attention!.Units));
        Launch(FuseTerm.Variant("fuse_sums"), pass, parameters);
        Launch(FuseTerm.Variant("fuse_squares"), pass, parameters);
        Launch(FuseTerm.Variant("fuse_scores"), device.Whole.Pass(withDigits: true), parameters);
        return default;
    }

    /// <inheritdoc/>
    public override void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets)
    {
        var (device, shape) = (_plans.Of(plan), plan.Shape);
        RequirePairs(shape, scores);
        if (keptIndices.Length != plan.KeptPairs || keptOffsets.Length != shape.Sequences * shape.KvHeads + 1)
            throw CompactorException.Argument(
                $"Kept indices and offsets hold {keptIndices.Length} and {keptOffsets.Length} entries; the plan needs {plan.KeptPairs} and {shape.Sequences * shape.KvHeads + 1}.");
        if (shape.Sequences == 0)
        {
            Clear(keptOffsets);
            return;
        }
        if (plan.Options.SelectionScope == SelectionScope.Token)
        {
            using var sums = Allocate<float>(shape.Tokens);
            Launch(PairSegments.Selection("select_token_sums"), new LaunchShape((shape.Tokens + PairSegments.Threads - 1) / PairSegments.Threads, PairSegments.Threads, 0), new SelectTokenSumsParams
            {
                Scores = (ulong)scores.Address,
                Sums = (ulong)sums.View.Address,
                Tokens = shape.Tokens,
                Heads = shape.KvHeads,
            });
            SelectFrom(device, shape, device.Segments, sums.View, keysGiven: false, "select_write", keptIndices, keptOffsets, copies: shape.KvHeads);
        }
        else if (device.Raised is { } raised)
        {
            using var keys = Allocate<int>(shape.Pairs);
            SelectFrom(device, shape, raised, scores, keysGiven: false, "select_raise", keys.View, default, copies: 1);
            SelectFrom(device, shape, device.Segments, new(keys.View.Address, shape.Pairs), keysGiven: true, "select_write", keptIndices, keptOffsets, copies: 1);
        }
        else
            SelectFrom(device, shape, device.Segments, scores, keysGiven: false, "select_write", keptIndices, keptOffsets, copies: 1);
    }

    private void SelectFrom(DevicePlan device, LayerShape shape, PairSegments segments, BufferView<float> scores, bool keysGiven, string write,
        BufferView<int> written, BufferView<int> keptOffsets, int copies)
    {
        using var counts = Allocate<ulong>(segments.Entries);
        using var states = Allocate<byte>((long)segments.Count * PairSegments.StateBytes);
        var parameters = new SelectParams
        {
            Segments = segments.Of(device.Tables, shape, device.CuSeqlens),
            Scores = (ulong)scores.Address,
            Counts = (ulong)counts.View.Address,
            KeptIndices = (ulong)written.Address,
            KeptOffsets = (ulong)keptOffsets.Address,
            KeysGiven = keysGiven ? 1 : 0,
            Copies = copies,
        };
        parameters.Segments.Histograms = _histograms.Of(sizeof(uint) * (long)PairSegments.HistogramDigits * segments.Count);
        parameters.Segments.Counters = _segmentCounters.Of(sizeof(uint) * (long)segments.Count);
        parameters.Segments.States = (ulong)states.View.Address;
        for (parameters.Round = 0; parameters.Round < 3; parameters.Round++)
            Launch(PairSegments.Selection("select_digits"), segments.Pass(withDigits: true), parameters);
        Launch(PairSegments.Selection("select_count"), segments.Pass(withDigits: true), parameters);
        Launch(PairSegments.Selection(write), segments.Pass(withDigits: false), parameters);
    }

    private BackendBuffer<float> ValueNorms(DevicePlan device, LayerShape shape, in TensorView value)
    {
        var norms = Allocate<float>(shape.Pairs);
        Launch(ValueNormsLaunch.Variant(shape.HeadDim, value.ElementType), ValueNormsLaunch.Shape(shape.Pairs), new ValueNormsParams
        {
            Value = new(value),
            Starts = device.CuSeqlens,
            Norms = (ulong)norms.View.Address,
            Sequences = shape.Sequences,
            Heads = shape.KvHeads,
        });
        return norms;
    }

    /// <summary>Device memory that kernels find zero and leave zero; it grows to the largest request.</summary>
    private sealed class ZeroedMemory(GpuBackend backend) : IDisposable
    {
        private BackendBuffer<byte>? _memory;

        public ulong Of(long bytes)
        {
            if (_memory is null || _memory.View.Length < bytes)
            {
                _memory?.Dispose();
                _memory = backend.Allocate<byte>(bytes);
                backend.Clear(_memory.View);
            }
            return (ulong)_memory.View.Address;
        }

        public void Dispose() => _memory?.Dispose();
    }
}
