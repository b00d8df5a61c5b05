using BenchmarkDotNet.Attributes;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;

namespace Compactor.Bench.Suites;

/// <summary>A sequence's life in the paged cache, one layer: 8192 tokens, Hkv 8, D 128, bfloat16, one thread.</summary>
public class PagedCacheBenchmarks : IDisposable
{
    private const int Tokens = 8192, KvHeads = 8, Dim = 128;

    private readonly CpuBackend _backend = new(threads: 1);
    private BenchLayer _layer = null!;
    private PagedCache _cache = null!;
    private CacheSequence _stored = null!;
    private int[] _keptSlots = [], _keptOffsets = [];

    [Params(16, 128)]
    public int BlockSize { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        _layer = new BenchLayer(_backend, Tokens, ElementType.BFloat16, queryHeads: KvHeads, kvHeads: KvHeads, dim: Dim);
        _cache = new PagedCache(_backend, new PagedCacheOptions
        {
            Layers = 1,
            KvHeads = KvHeads,
            HeadDim = Dim,
            ElementType = ElementType.BFloat16,
            Blocks = 4 * KvHeads * Tokens / BlockSize,
            BlockSize = BlockSize,
        });
        _keptOffsets = [.. Enumerable.Range(0, KvHeads + 1).Select(head => head * Tokens / 2)];
        _keptSlots = [.. Enumerable.Range(0, KvHeads).SelectMany(_ => Enumerable.Range(0, Tokens / 2).Select(i => 2 * i))];
        Store(_stored = _cache.CreateSequence());
    }

    [Benchmark]
    public void CreateAndFree() => _cache.CreateSequence().Dispose();

    [Benchmark]
    public void ReserveAndFree()
    {
        using var sequence = _cache.CreateSequence();
        sequence.Reserve(0, Tokens);
    }

    [Benchmark]
    public void StoreAndFree()
    {
        using var sequence = _cache.CreateSequence();
        Store(sequence);
    }

    /// <summary>Less what storing takes is what compaction to every second slot takes.</summary>
    [Benchmark]
    public void StoreCompactAndFree()
    {
        using var sequence = _cache.CreateSequence();
        Store(sequence);
        sequence.Compact(0, _keptSlots, _keptOffsets);
    }

    [Benchmark]
    public int[] ExportAsFlashInfer() => CacheExport.FlashInfer([_stored], 0).Indices;

    [Benchmark]
    public int[] ExportPadded() => CacheExport.Padded([_stored], 0).Tables;

    [GlobalCleanup]
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        foreach (var owned in new IDisposable[] { _stored, _cache, _layer, _backend })
            owned.Dispose();
    }

    private void Store(CacheSequence sequence) => sequence.Store(0, _layer.Inputs.Key, _layer.Inputs.Value, 0, Tokens, 0);
}
