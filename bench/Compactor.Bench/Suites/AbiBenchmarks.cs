using BenchmarkDotNet.Attributes;
using BenchmarkDotNet.Configs;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;
using PInvokeSample;
using Abi = PInvokeSample.Native;
using AbiBudget = PInvokeSample.Budget;
using Budget = Compactor.Native.Compression.Budget;

namespace Compactor.Bench.Suites;

/// <summary>The boundary: calls of the shared library's C functions, and the same in C#. The library is the one that COMPACTOR_LIBRARY names.</summary>
[GroupBenchmarksBy(BenchmarkLogicalGroupRule.ByCategory)]
public unsafe class AbiBenchmarks : IDisposable
{
    /// <summary>A layer so small that what is around its computation shows.</summary>
    private const int Tokens = 64, QueryHeads = 4, KvHeads = 2, Dim = 64, Blocks = 64;

    private readonly CpuBackend _backend = new(threads: 1);
    private BenchLayer _layer = null!;
    private PagedCache _cache = null!;
    private LayerPlan _plan = null!;
    private LayerMemory _memory = null!;
    private List<IDisposable> _owned = null!;
    private BackendBuffer<byte> _keys = null!, _values = null!;
    private ulong _abiBackend, _abiPlan, _abiCache;

    [GlobalSetup]
    public void Setup()
    {
        _layer = new BenchLayer(_backend, Tokens, queryHeads: QueryHeads, kvHeads: KvHeads, dim: Dim);
        _cache = new PagedCache(_backend, new PagedCacheOptions { Layers = 1, KvHeads = KvHeads, HeadDim = Dim, ElementType = ElementType.Float32, Blocks = Blocks });
        _plan = new LayerPlan(_layer.Shape, CompressionPresets.Paper, Budget.Retention(0.25));
        long bytes = LayerMemory.WorkspaceBytes(_plan);
        var workspace = _backend.Allocate<byte>(bytes + LayerMemory.Alignment);
        var indices = _backend.Allocate<int>(_plan.KeptPairs);
        var offsets = _backend.Allocate<int>(KvHeads + 1);
        (_keys, _values) = (_backend.Allocate<byte>(_plan.KeptPairs * Dim * sizeof(float)), _backend.Allocate<byte>(_plan.KeptPairs * Dim * sizeof(float)));
        _memory = new LayerMemory(workspace.View.Slice(-(long)workspace.View.Address & (LayerMemory.Alignment - 1), bytes), indices.View, offsets.View);
        _owned = [workspace, indices, offsets, _keys, _values, _cache, _layer, _backend];

        var backend = new BackendOptions { StructSize = (uint)sizeof(BackendOptions), Kind = Abi.BackendCpu, Threads = 1 };
        Abi.Check(Abi.compactor_backend_open(&backend, out _abiBackend));
        var options = new Options { StructSize = (uint)sizeof(Options) };
        Abi.Check(Abi.compactor_options_preset(Abi.PresetPaper, ref options));
        var budget = new AbiBudget { StructSize = (uint)sizeof(AbiBudget), Unit = Abi.BudgetRetention, Amount = 0.25 };
        int* cuSeqlens = stackalloc int[] { 0, Tokens };
        var shape = new Shape
        {
            StructSize = (uint)sizeof(Shape),
            Sequences = 1,
            CuSeqlens = cuSeqlens,
            QueryHeads = QueryHeads,
            KvHeads = KvHeads,
            HeadDim = Dim,
            ElementType = Abi.Float32,
        };
        Abi.Check(Abi.compactor_plan_create(shape, options, budget, 1, out _abiPlan));
        var cache = new CacheOptions { StructSize = (uint)sizeof(CacheOptions), Layers = 1, KvHeads = KvHeads, HeadDim = Dim, ElementType = Abi.Float32, Blocks = Blocks };
        Abi.Check(Abi.compactor_cache_create(_abiBackend, cache, out _abiCache));
    }

    /// <summary>Crossing the boundary and nothing else.</summary>
    [Benchmark, BenchmarkCategory("version")]
    public uint Version_C() => Abi.compactor_abi_version();

    [Benchmark, BenchmarkCategory("sequence")]
    public void CreateAndFreeSequence_C()
    {
        Abi.Check(Abi.compactor_sequence_create(_abiCache, out ulong sequence));
        Abi.Check(Abi.compactor_sequence_free(sequence));
    }

    [Benchmark(Baseline = true), BenchmarkCategory("sequence")]
    public void CreateAndFreeSequence() => _cache.CreateSequence().Dispose();

    /// <summary>Scores, selection and compaction.</summary>
    [Benchmark, BenchmarkCategory("layer")]
    public void CompressTinyLayer_C()
    {
        var inputs = _layer.Inputs;
        Tensor key = Packed(inputs.Key), value = Packed(inputs.Value), pre = Packed(inputs.KeyPreRope!.Value), query = Packed(inputs.Query!.Value);
        var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &pre, Query = &query };
        Abi.Check(Abi.compactor_compress_layer(_abiBackend, _abiPlan, layer, (void*)_memory.Workspace.Address, (ulong)_memory.Workspace.Length,
            (int*)_memory.KeptIndices.Address, _memory.KeptIndices.Length, (int*)_memory.KeptOffsets.Address, _memory.KeptOffsets.Length,
            (void*)_keys.View.Address, (ulong)_keys.View.Length, (void*)_values.View.Address, (ulong)_values.View.Length));
    }

    [Benchmark(Baseline = true), BenchmarkCategory("layer")]
    public void CompressTinyLayer()
    {
        using var selection = LayerCompressor.Select(_backend, _plan, _layer.Inputs, memory: _memory);
        _backend.Compact(_plan, _layer.Inputs.Key, selection.KeptIndices.View, selection.KeptOffsets.View, _keys.View);
        _backend.Compact(_plan, _layer.Inputs.Value, selection.KeptIndices.View, selection.KeptOffsets.View, _values.View);
    }

    [GlobalCleanup]
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        Abi.Check(Abi.compactor_cache_destroy(_abiCache));
        Abi.Check(Abi.compactor_plan_destroy(_abiPlan));
        Abi.Check(Abi.compactor_backend_close(_abiBackend));
        _owned.ForEach(owned => owned.Dispose());
    }

    private static Tensor Packed(TensorView view) => new()
    {
        StructSize = (uint)sizeof(Tensor),
        ElementType = Abi.Float32,
        Data = (void*)view.Address,
        DataBytes = (ulong)view.Tokens * (ulong)(view.Heads * view.Dim) * sizeof(float),
        Tokens = view.Tokens,
        Heads = view.Heads,
        Dim = view.Dim,
        TokenStride = view.Heads * view.Dim,
        HeadStride = view.Dim,
    };
}
