using System.Diagnostics;

namespace Compactor.Native.Compression;

/// <summary>Which pairs of a layer are kept, and the scores that decided it.</summary>
public sealed class LayerSelection : IDisposable
{
    private readonly KvBackend _backend;
    private readonly LayerMemory? _memory;
    private int _scoresTaken;

    internal LayerSelection(KvBackend backend, LayerPlan plan, LayerMemory? memory = null)
    {
        memory?.Validate(plan);
        (_backend, Plan, _memory) = (backend, plan, memory);
        KeptIndices = memory is null ? backend.Allocate<int>(plan.KeptPairs) : new BorrowedBuffer<int>(memory.KeptIndices);
        KeptOffsets = memory is null ? backend.Allocate<int>(plan.Shape.Sequences * plan.Shape.KvHeads + 1) : new BorrowedBuffer<int>(memory.KeptOffsets);
    }

    /// <summary>The plan this came from.</summary>
    public LayerPlan Plan { get; }

    /// <summary>Raw leverage scores <c>[N, Hkv]</c> (here and below <c>[pairs]</c>, head by head, where the plan is ragged); null when they were not needed.</summary>
    public BackendBuffer<float>? Leverage { get; private set; }

    /// <summary>Attention scores <c>[N, Hkv]</c> after the group reduction; null when there were no queries or they were not needed.</summary>
    public BackendBuffer<float>? Attention { get; private set; }

    /// <summary>Fused scores <c>[N, Hkv]</c>, +inf on protected tokens; null when everything was kept.</summary>
    public BackendBuffer<float>? Scores { get; private set; }

    /// <summary>Kept tokens within their sequences, ascending per head, sequence by sequence and head by head.</summary>
    public BackendBuffer<int> KeptIndices { get; }

    /// <summary><c>[B·Hkv + 1]</c>: where each head's tokens start in <see cref="KeptIndices"/>.</summary>
    public BackendBuffer<int> KeptOffsets { get; }

    /// <summary>What scoring finds wrong with the data; where it is something, the other members mean nothing. Disposed with the selection.</summary>
    public ScoringStatus Status { get; internal set; } = ScoringStatus.Fine;

    /// <summary>Hands the status to somebody who outlives the selection.</summary>
    internal ScoringStatus ReleaseStatus()
    {
        var status = Status;
        Status = ScoringStatus.Fine;
        return status;
    }

    /// <summary>Wall time of the stages.</summary>
    public StageTimes Times { get; } = new();

    /// <summary>Allocates <see cref="Leverage"/>.</summary>
    public BufferView<float> NewLeverage() => (Leverage = NewScores()).View;

    /// <summary>Allocates <see cref="Attention"/>.</summary>
    public BufferView<float> NewAttention() => (Attention = NewScores()).View;

    /// <summary>Allocates <see cref="Scores"/>.</summary>
    public BufferView<float> NewFused() => (Scores = NewScores()).View;

    private BackendBuffer<float> NewScores() => _memory is null
        ? _backend.Allocate<float>(Plan.Shape.Pairs)
        : new BorrowedBuffer<float>(_memory.Scores(Plan, _scoresTaken++));

    /// <summary>Gathers the survivors of a tensor into a dense <c>[kept pairs, D]</c>, as bytes.</summary>
    /// <param name="source">Keys or values of the layer.</param>
    public BackendBuffer<byte> Compact(in TensorView source)
    {
        if (Plan.Shape.IsRagged)
            throw CompactorException.Unsupported($"Layer {Plan.Shape.Layer}: the selection is of slots of a paged cache; compact them there.");
        long start = Stopwatch.GetTimestamp();
        var destination = _backend.Allocate<byte>(Plan.KeptPairs * source.Dim * source.ElementType.Size());
        _backend.Compact(Plan, source, KeptIndices.View, KeptOffsets.View, destination.View);
        Times.Compact += Stopwatch.GetElapsedTime(start);
        return destination;
    }

    internal void KeepEverything()
    {
        var shape = Plan.Shape;
        var indices = new int[Plan.KeptPairs];
        var offsets = new int[shape.Sequences * shape.KvHeads + 1];
        for (int b = 0, segment = 0; b < shape.Sequences; b++)
            for (int h = 0; h < shape.KvHeads; h++, segment++)
            {
                int length = shape.LengthOf(b, h);
                offsets[segment + 1] = offsets[segment] + length;
                for (int t = 0; t < length; t++)
                    indices[offsets[segment] + t] = t;
            }
        _backend.Upload<int>(indices, KeptIndices.View);
        _backend.Upload<int>(offsets, KeptOffsets.View);
    }

    /// <summary>Gives all buffers back.</summary>
    public void Dispose()
    {
        Status.Dispose();
        Leverage?.Dispose();
        Attention?.Dispose();
        Scores?.Dispose();
        KeptIndices.Dispose();
        KeptOffsets.Dispose();
    }
}

/// <summary>Wall time of each stage of a layer.</summary>
public sealed class StageTimes
{
    /// <summary>Leverage scores, drawing Phi included.</summary>
    public TimeSpan Leverage { get; set; }

    /// <summary>Attention scores.</summary>
    public TimeSpan Attention { get; set; }

    /// <summary>Fusion.</summary>
    public TimeSpan Fuse { get; set; }

    /// <summary>Selection.</summary>
    public TimeSpan Select { get; set; }

    /// <summary>Gathering of survivors.</summary>
    public TimeSpan Compact { get; set; }

    /// <summary>All stages.</summary>
    public TimeSpan Total => Leverage + Attention + Fuse + Select + Compact;
}
