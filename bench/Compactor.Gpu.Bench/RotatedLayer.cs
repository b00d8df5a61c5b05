using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Gpu;
using Compactor.Native.Paging;

namespace Compactor.Gpu.Bench;

/// <summary>
/// A layer's tensors in bfloat16, as many copies of each as leave the device's cache no use, and its operations on them: bytes and flops are those that cannot be avoided
/// (Kp is read once or twice; Q and K once; half of K and V read and written; the pool's survivors read once).
/// </summary>
internal sealed unsafe class RotatedLayer : IDisposable
{
    private const int ElementBytes = 2, TileBytes = 16 << 20, MostCopies = 32, BlockSize = 128;
    private const double CacheMultiple = 4, Retention = 0.5;

    private readonly BenchDevice _device;
    private readonly BenchModel _model;
    private readonly int _tokens, _sequences;
    private readonly List<IDisposable> _held = [];

    /// <param name="device">Where.</param>
    /// <param name="model">Heads.</param>
    /// <param name="tokens">N.</param>
    /// <param name="sequences">Sequences that are decoded at once, fewer where memory is short.</param>
    public RotatedLayer(BenchDevice device, BenchModel model, int tokens, int sequences) => (_device, _model, _tokens, _sequences) = (device, model, tokens, sequences);

    private GpuBackend Backend => _device.Backend;

    private long KeyBytes => (long)_tokens * _model.KvHeads * _model.HeadDim * ElementBytes;

    /// <summary>Operations, and how each is made: its memory is there until <see cref="Release"/>.</summary>
    public IReadOnlyList<(string Name, Func<Operation> Make)> Operations()
    {
        List<(string Name, Func<string, Operation> Make)> operations =
        [
            ("leverage, chunk 512", name => Leverage(name, 512, 1)),
            ("leverage, whole sequence", name => Leverage(name, 0, 2)),
            ("attention scores, C 256", name => AttentionScores(name, Backend)),
        ];
        if (_device.Portable is { } portable)
            operations.Add(("attention scores, C 256, mma.sync", name => AttentionScores(name, portable)));
        operations.AddRange([("fuse and select", FuseAndSelect), ("compact, r 0.5", Compact), ("decode attention, r 0.5", Decode), ("whole layer, paper, r 0.5", Layer)]);
        return [.. operations.Select(operation => (operation.Name, (Func<Operation>)(() => operation.Make(operation.Name))))];
    }

    public void Release()
    {
        _held.ForEach(memory => memory.Dispose());
        _held.Clear();
    }

    public void Dispose() => Release();

    private Operation Leverage(string name, int chunk, int reads)
    {
        var plan = Plan(CompressionPresets.Paper with { LeverageChunk = chunk });
        var leverage = New<float>(plan.Shape.Pairs);
        var keys = Rotated(1, _model.KvHeads, 1, KeyBytes);
        return Of(name, reads * (double)KeyBytes, 0, keys.Count, i => Backend.Leverage(plan, keys[i], null, plan.Sketch, leverage));
    }

    private Operation AttentionScores(string name, GpuBackend backend)
    {
        var plan = Plan(CompressionPresets.Paper);
        var attention = New<float>(plan.Shape.Pairs);
        double bytes = KeyBytes * (1 + (double)_model.QueryHeads / _model.KvHeads);
        List<TensorView> queries = Rotated(2, _model.QueryHeads, 3 / MathF.Sqrt(_model.HeadDim), bytes), keys = Rotated(3, _model.KvHeads, 1, bytes);
        return Of(name, bytes, 2.0 * _tokens * plan.Options.AttentionChunk * _model.QueryHeads * _model.HeadDim, queries.Count,
            i => backend.AttentionScores(plan, queries[i], keys[i], attention), backend);
    }

    /// <summary>Scores were just written when they are fused: they are in the cache, and memory is no floor.</summary>
    private Operation FuseAndSelect(string name)
    {
        var plan = Plan(CompressionPresets.Paper);
        var (leverage, attention, scores) = Scores(plan);
        var (indices, offsets) = Kept(plan);
        return Of(name, 0, 0, 1, _ =>
        {
            Backend.Fuse(plan, leverage, attention, default, scores);
            Backend.SelectFused(plan, scores, indices, offsets);
        });
    }

    private Operation Compact(string name)
    {
        var plan = Plan(CompressionPresets.Paper);
        var (leverage, attention, scores) = Scores(plan);
        var (indices, offsets) = Kept(plan);
        Backend.Fuse(plan, leverage, attention, default, scores);
        Backend.SelectFused(plan, scores, indices, offsets);
        long kept = plan.KeptPairs * _model.HeadDim * ElementBytes;
        BufferView<byte> survivingKeys = New<byte>(kept), survivingValues = New<byte>(kept);
        List<TensorView> keys = Rotated(3, _model.KvHeads, 1, 2 * kept), values = Rotated(4, _model.KvHeads, 1, 2 * kept);
        return Of(name, 4.0 * kept, 0, keys.Count, i =>
        {
            Backend.Compact(plan, keys[i], indices, offsets, survivingKeys);
            Backend.Compact(plan, values[i], indices, offsets, survivingValues);
        });
    }

    private Operation Decode(string name)
    {
        int kept = (int)(_tokens * Retention), blocks = (kept + BlockSize - 1) / BlockSize;
        long bytesOfSequence = 2L * _model.KvHeads * blocks * BlockSize * _model.HeadDim * ElementBytes;
        int sequences = (int)Math.Clamp(_device.FreeBytes * 3 / 4 / bytesOfSequence, 1, _sequences), heads = sequences * _model.KvHeads;
        int copies = Copies(sequences * (double)bytesOfSequence);
        var pools = Enumerable.Range(0, copies).Select(_ => (Keys: Filled(5, (long)heads * blocks * BlockSize, 1), Values: Filled(6, (long)heads * blocks * BlockSize, 1))).ToList();
        // Any head may hold any block.
        int[] tables = [.. Enumerable.Range(0, heads * blocks)], lengths = new int[heads];
        new Random(1).Shuffle(tables);
        Array.Fill(lengths, kept);
        var places = new PagedTables(Copy(tables), blocks, Copy(lengths));
        var query = TensorView.Packed(Filled(7, (long)sequences * _model.QueryHeads, 3 / MathF.Sqrt(_model.HeadDim)).Address, ElementType.BFloat16, sequences, _model.QueryHeads, _model.HeadDim);
        var output = New<float>((long)sequences * _model.QueryHeads * _model.HeadDim);
        return Of($"{name}, {sequences} sequences", 2.0 * heads * kept * _model.HeadDim * ElementBytes, 0, copies, i => Backend.DecodeAttention(
            PagedView.HeadBlocks(pools[i].Keys.Address, pools[i].Values.Address, ElementType.BFloat16, BlockSize, _model.HeadDim), query, _model.KvHeads, places, new AttentionOptions(), output));
    }

    /// <summary>All launches of a layer's compression, survivors moved; no floor is stated for it.</summary>
    private Operation Layer(string name)
    {
        var plan = Plan(CompressionPresets.Paper);
        var (indices, offsets) = Kept(plan);
        var memory = new LayerMemory(New<byte>(LayerMemory.WorkspaceBytes(plan)), indices, offsets);
        long kept = plan.KeptPairs * _model.HeadDim * ElementBytes;
        BufferView<byte> survivingKeys = New<byte>(kept), survivingValues = New<byte>(kept);
        double least = KeyBytes;
        List<TensorView> pre = Rotated(1, _model.KvHeads, 1, least), query = Rotated(2, _model.QueryHeads, 3 / MathF.Sqrt(_model.HeadDim), least), key = Rotated(3, _model.KvHeads, 1, least), value = Rotated(4, _model.KvHeads, 1, least);
        return Of(name, 0, 0, pre.Count, i =>
        {
            LayerCompressor.Queue(Backend, plan, new LayerInputs { KeyPreRope = pre[i], Query = query[i], Key = key[i], Value = value[i] }, memory);
            Backend.Compact(plan, key[i], indices, offsets, survivingKeys);
            Backend.Compact(plan, value[i], indices, offsets, survivingValues);
        });
    }

    private LayerPlan Plan(CompressionOptions options) =>
        new(new LayerShape([0, _tokens], _model.QueryHeads, _model.KvHeads, _model.HeadDim, ElementType.BFloat16), options, Budget.Retention(Retention));

    private Operation Of(string name, double bytes, double flops, int copies, Action<int> run, GpuBackend? backend = null) =>
        new(name, _model, _tokens, bytes, flops, backend ?? Backend, [.. Enumerable.Range(0, copies).Select(i => (Action)(() => run(i)))]);

    /// <summary>Scores as operations leave them.</summary>
    private (BufferView<float> Leverage, BufferView<float> Attention, BufferView<float> Fused) Scores(LayerPlan plan)
    {
        BufferView<float> leverage = New<float>(plan.Shape.Pairs), attention = New<float>(plan.Shape.Pairs);
        Backend.Leverage(plan, Dense(1, _model.KvHeads, 1), null, plan.Sketch, leverage);
        Backend.AttentionScores(plan, Dense(2, _model.QueryHeads, 3 / MathF.Sqrt(_model.HeadDim)), Dense(3, _model.KvHeads, 1), attention);
        return (leverage, attention, New<float>(plan.Shape.Pairs));
    }

    private (BufferView<int> Indices, BufferView<int> Offsets) Kept(LayerPlan plan) => (New<int>(plan.KeptPairs), New<int>(plan.Shape.Sequences * plan.Shape.KvHeads + 1));

    /// <summary>Copies of a tensor; so many that an operation which reads <paramref name="bytes"/> of each in turn reads several caches full.</summary>
    private List<TensorView> Rotated(ulong seed, int heads, float scale, double bytes) => [.. Enumerable.Range(0, Copies(bytes)).Select(_ => Dense(seed, heads, scale))];

    private int Copies(double bytes) => (int)Math.Clamp(Math.Ceiling(CacheMultiple * _device.CacheBytes / bytes), 1, MostCopies);

    private TensorView Dense(ulong seed, int heads, float scale) =>
        TensorView.Packed(Filled(seed, (long)_tokens * heads, scale).Address, ElementType.BFloat16, _tokens, heads, _model.HeadDim);

    /// <summary>Rows of about normal values with a deviation of <paramref name="scale"/>; what is longer than a tile repeats it.</summary>
    private BufferView<byte> Filled(ulong seed, long rows, float scale)
    {
        var memory = New<byte>(rows * _model.HeadDim * ElementBytes);
        ushort[] tile = new ushort[Math.Min(memory.Length, TileBytes) / ElementBytes];
        Parallel.For(0, (tile.Length + 1023) / 1024, block =>
        {
            for (int i = 1024 * block; i < Math.Min(tile.Length, 1024 * block + 1024); i++)
                tile[i] = (ushort)(BitConverter.SingleToUInt32Bits(Normal(seed << 32 | (uint)i) * scale) >> 16);
        });
        fixed (ushort* content = tile)
            for (long at = 0; at < memory.Length; at += TileBytes)
            {
                int bytes = (int)Math.Min(TileBytes, memory.Length - at);
                Backend.Upload(new ReadOnlySpan<byte>(content, bytes), memory.Slice(at, bytes));
            }
        return memory;
    }

    /// <summary>The sum of four uniform numbers, scaled to a variance of 1, drawn by SplitMix64.</summary>
    private static float Normal(ulong counter)
    {
        ulong z = counter * 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        z ^= z >> 31;
        uint sum = (uint)(z & 0xffff) + (uint)(z >> 16 & 0xffff) + (uint)(z >> 32 & 0xffff) + (uint)(z >> 48);
        return (sum / 65536f - 2) * 1.7320508f;
    }

    private BufferView<T> New<T>(long length) where T : unmanaged
    {
        var memory = Backend.Allocate<T>(length);
        _held.Add(memory);
        return memory.View;
    }

    private BufferView<int> Copy(int[] values)
    {
        var memory = New<int>(values.Length);
        Backend.Upload<int>(values, memory);
        return memory;
    }
}
