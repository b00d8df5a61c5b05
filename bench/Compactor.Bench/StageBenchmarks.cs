using BenchmarkDotNet.Attributes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench;

/// <summary>Each stage of the CPU backend on the reference layer: Hq 32, Hkv 8, D 128.</summary>
public class StageBenchmarks : IDisposable
{
    private CpuBackend _backend = null!;
    private BenchLayer _layer = null!;
    private LayerPlan _whole = null!, _chunked = null!, _perHead = null!, _perToken = null!;
    private Sketch _sketch = null!;
    private BackendBuffer<float> _leverage = null!, _attention = null!, _scores = null!;
    private BackendBuffer<int> _indices = null!, _offsets = null!;
    private BackendBuffer<byte> _survivors = null!;

    [Params(1024, 8192, 32768)]
    public int N { get; set; }

    [Params(ElementType.Float32, ElementType.BFloat16)]
    public ElementType Type { get; set; }

    [Params(1, 2)]
    public int Threads { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        _backend = new CpuBackend(Threads);
        _layer = new BenchLayer(_backend, N, Type);
        var half = Budget.Retention(0.5);
        _whole = new LayerPlan(_layer.Shape, CompressionPresets.Paper, half);
        _chunked = new LayerPlan(_layer.Shape, CompressionPresets.CompactorVllm, half);
        _perHead = new LayerPlan(_layer.Shape, CompressionPresets.Paper with { SelectionScope = SelectionScope.Head }, half);
        _perToken = new LayerPlan(_layer.Shape, CompressionPresets.Paper with { SelectionScope = SelectionScope.Token }, half);
        _sketch = Sketch.Draw(_layer.Shape, CompressionPresets.Paper);
        int scores = N * _layer.Shape.KvHeads;
        (_leverage, _attention, _scores) = (_backend.Allocate<float>(scores), _backend.Allocate<float>(scores), _backend.Allocate<float>(scores));
        (_indices, _offsets) = (_backend.Allocate<int>(_whole.KeptPairs), _backend.Allocate<int>(_layer.Shape.KvHeads + 1));
        _survivors = _backend.Allocate<byte>(_whole.KeptPairs * _layer.Shape.HeadDim * Type.Size());
        LeverageWhole();
        AttentionScores();
        Fuse();
        SelectSequence();
    }

    [Benchmark]
    public void LeverageWhole() => _backend.Leverage(_whole, _layer.Inputs.KeyPreRope!.Value, null, _sketch, _leverage.View);

    [Benchmark]
    public void LeverageChunk512() => _backend.Leverage(_chunked, _layer.Inputs.KeyPreRope!.Value, null, _sketch, _leverage.View);

    [Benchmark]
    public void AttentionScores() => _backend.AttentionScores(_whole, _layer.Inputs.Query!.Value, _layer.Inputs.Key, _attention.View);

    [Benchmark]
    public void Fuse() => _backend.Fuse(_whole, _leverage.View, _attention.View, _layer.Inputs.Value, _scores.View);

    [Benchmark]
    public void SelectSequence() => _backend.Select(_whole, _scores.View, _indices.View, _offsets.View);

    [Benchmark]
    public void SelectHead() => Select(_perHead);

    [Benchmark]
    public void SelectToken() => Select(_perToken);

    [Benchmark]
    public void Compact() => _backend.Compact(_whole, _layer.Inputs.Key, _indices.View, _offsets.View, _survivors.View);

    [Benchmark]
    public void WholeLayer() => LayerCompressor.Select(_backend, _whole, _layer.Inputs).Dispose();

    [GlobalCleanup]
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        foreach (var owned in new IDisposable[] { _layer, _leverage, _attention, _scores, _indices, _offsets, _survivors, _backend })
            owned.Dispose();
    }

    private void Select(LayerPlan plan)
    {
        using var indices = _backend.Allocate<int>(plan.KeptPairs);
        using var offsets = _backend.Allocate<int>(_layer.Shape.KvHeads + 1);
        _backend.Select(plan, _scores.View, indices.View, offsets.View);
    }
}
