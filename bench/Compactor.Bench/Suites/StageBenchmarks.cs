using BenchmarkDotNet.Attributes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench.Suites;

/// <summary>Each stage of the CPU backend on the reference layer: Hq 32, Hkv 8, D 128.</summary>
public class StageBenchmarks : IDisposable
{
    private CpuBackend _backend = null!;
    private BenchLayer _layer = null!;
    private LayerStages _stages = null!, _chunked = null!, _perHead = null!, _perToken = null!;

    [Params(1024, 4096, 16_384, 65_536)]
    public int N { get; set; }

    [Params(ElementType.Float32, ElementType.Float16, ElementType.BFloat16)]
    public ElementType Type { get; set; }

    [Params(1, 2)]
    public int Threads { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        _backend = new CpuBackend(Threads);
        _layer = new BenchLayer(_backend, N, Type);
        var paper = CompressionPresets.Paper;
        (_stages, _chunked) = (Stages(paper), Stages(paper with { LeverageChunk = 512 }));
        (_perHead, _perToken) = (Stages(paper with { SelectionScope = SelectionScope.Head }), Stages(paper with { SelectionScope = SelectionScope.Token }));
        foreach (var stages in (LayerStages[])[_stages, _perHead, _perToken])
            stages.WholeLayer();

        LayerStages Stages(CompressionOptions options) => new(_backend, _layer, options);
    }

    [Benchmark]
    public void LeverageWhole() => _stages.Leverage();

    [Benchmark]
    public void LeverageChunk512() => _chunked.Leverage();

    [Benchmark]
    public void AttentionScores() => _stages.Attention();

    [Benchmark]
    public void Fuse() => _stages.Fuse();

    [Benchmark]
    public void SelectSequence() => _stages.Select();

    [Benchmark]
    public void SelectHead() => _perHead.Select();

    [Benchmark]
    public void SelectToken() => _perToken.Select();

    [Benchmark]
    public void CompactKeysAndValues() => _stages.Compact();

    [Benchmark]
    public void WholeLayer() => _stages.WholeLayer();

    [GlobalCleanup]
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        foreach (var owned in new IDisposable[] { _stages, _chunked, _perHead, _perToken, _layer, _backend })
            owned.Dispose();
    }
}
