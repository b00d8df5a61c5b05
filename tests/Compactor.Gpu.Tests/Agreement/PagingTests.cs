using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;
using Compactor.Native.Tests.Paging;
using Compactor.Native.Tests.Support;
using Xunit;
using static Compactor.Native.Tests.Paging.PagedCacheModel;

namespace Compactor.Gpu.Tests.Agreement;

/// <summary>The paged cache in device memory beside a dictionary of what it should hold, and attention over it.</summary>
public class PagingTests
{
    [Theory]
    [InlineData(ElementType.BFloat16, 150)]
    [InlineData(ElementType.Opaque8, 100)]
    public void Random_operations_lose_double_and_leak_nothing(ElementType type, int steps) => Check(type, steps, 20250708);

    [Theory(Explicit = true)]
    [InlineData(ElementType.Float32)]
    [InlineData(ElementType.Float16)]
    [InlineData(ElementType.BFloat16)]
    public void More_random_operations_lose_double_and_leak_nothing(ElementType type) => Check(type, 2000, 1);

    public static TheoryData<ElementType, int, int> AttentionCases => new()
    {
        { ElementType.BFloat16, 128, 4 },
        { ElementType.Float16, 64, 1 },
        { ElementType.Float32, 80, 3 },
    };

    public static TheoryData<ElementType, int, int> MoreAttentionCases =>
        [.. from type in Arrays.FloatTypes from dim in (int[])[64, 80, 96, 128, 256] from @group in (int[])[1, 7, 16] select (type, dim, @group)];

    [Theory]
    [MemberData(nameof(AttentionCases))]
    public void Decode_attention_agrees(ElementType type, int dim, int group) => CheckAttention(type, dim, group, 16);

    [Theory(Explicit = true)]
    [MemberData(nameof(MoreAttentionCases))]
    public void Decode_attention_agrees_everywhere(ElementType type, int dim, int group)
    {
        foreach (int blockSize in (int[])[16, 128, 256])
            CheckAttention(type, dim, group, blockSize);
    }

    [Theory]
    [InlineData("paper")]
    [InlineData("kvpress")]
    [InlineData("compactor-vllm")]
    public void A_prefill_is_scored_and_its_survivors_are_stored(string preset)
    {
        var layer = TestLayer.Random(1, [150, 1, 90], 4, 2, 64, ElementType.BFloat16);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.ByName[preset] with { SketchDimension = 16 }, Budget.Retention(0.4));
        using var device = new Device(seed: 3);
        var inputs = device.Copy(layer.Inputs);
        using var cache = new PagedCache(device.Backend, new PagedCacheOptions { Layers = 1, KvHeads = 2, HeadDim = 64, ElementType = ElementType.BFloat16, Blocks = 60, BlockSize = 16 });
        CacheSequence[] sequences = [cache.CreateSequence(), cache.CreateSequence(), cache.CreateSequence()];
        using (var pending = CacheCompressor.StorePrefill(sequences, 0, plan, inputs))
            pending.Complete();
        using var selection = LayerCompressor.Select(device.Backend, plan, inputs);
        selection.Status.ThrowIfFailed();
        int[] indices = device.Backend.Read(selection.KeptIndices.View), offsets = device.Backend.Read(selection.KeptOffsets.View);
        using var dense = selection.Compact(inputs.Key);
        byte[] survivors = device.Backend.Read(dense.View);
        for (int row = 0; row < 6; row++)
        {
            var (positions, keys, _) = sequences[row / 2].Read(0, row % 2);
            Assert.Equal(indices[offsets[row]..offsets[row + 1]], positions);
            Assert.Equal(survivors[(offsets[row] * 128)..(offsets[row + 1] * 128)], keys);
        }
        GC.KeepAlive(layer);
    }

    [Fact]
    public unsafe void Work_on_a_side_stream_waits_for_the_callers_and_the_callers_for_it()
    {
        for (ulong seed = 1; seed <= 10; seed++)
        {
            using var device = new Device(seed);
            using var callers = device.Driver.CreateStream();
            BufferView<int> memory = device.New<int>(4), result = device.New<int>(4);
            using var made = device.Backend.Record();
            made.Wait();
            device.Driver.Fill(memory.Address, 1, 16, callers);
            device.Backend.StartAfter(callers);
            Assert.Equal([0x01010101, 0x01010101, 0x01010101, 0x01010101], device.Backend.Read(memory));
            device.Backend.Upload<int>([1, 2, 3, 4], result);
            device.Backend.FinishBefore(callers);
            nint host = device.Driver.AllocateHost(16);
            device.Driver.CopyToHost(result.Address, host, 16, callers);
            callers.Synchronize();
            Assert.Equal([1, 2, 3, 4], new Span<int>((void*)host, 4).ToArray());
            device.Driver.FreeHost(host);
        }
    }

    [Fact]
    public unsafe void A_layer_beside_the_callers_work_waits_for_its_inputs_and_the_caller_for_its_end()
    {
        var layer = TestLayer.Random(5, [60, 30], 4, 2, 64, ElementType.BFloat16);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper with { SketchDimension = 16 }, Budget.Retention(0.4));
        using var plain = new Device();
        using var selection = LayerCompressor.Select(plain.Backend, plan, plain.Copy(layer.Inputs));
        int[] expected = plain.Backend.Read(selection.KeptIndices.View);
        for (ulong seed = 1; seed <= 20; seed++)
        {
            using var device = new Device(seed, beside: true);
            var (driver, callers) = (device.Driver, device.Stream);
            // The caller writes the inputs, on its own stream, over what lies there; then over them again.
            var inputs = device.Copy(TestLayer.Random(6, [60, 30], 4, 2, 64, ElementType.BFloat16).Inputs);
            var memory = new LayerMemory(device.New<byte>(LayerMemory.WorkspaceBytes(plan)), device.New<int>(plan.KeptPairs), device.New<int>(5));
            device.Backend.Prepare(plan, inputs);
            using var ready = device.Backend.Record();
            ready.Wait();
            (TensorView Copy, TensorView Host)[] tensors = [(inputs.Key, layer.Inputs.Key), (inputs.Value, layer.Inputs.Value), (inputs.KeyPreRope!.Value, layer.Inputs.KeyPreRope!.Value), (inputs.Query!.Value, layer.Inputs.Query!.Value)];
            foreach (var (copy, host) in tensors)
            {
                long bytes = (long)host.Tokens * host.Heads * host.Dim * 2;
                nint pinned = driver.AllocateHost(bytes);
                Buffer.MemoryCopy((void*)host.Address, (void*)pinned, bytes, bytes);
                driver.CopyToDevice(pinned, copy.Address, bytes, callers);
            }
            LayerCompressor.Queue(device.Backend, plan, inputs, memory);
            device.Backend.Join();
            foreach (var (copy, host) in tensors)
                driver.Fill(copy.Address, 0x3f, (long)host.Tokens * host.Heads * host.Dim * 2, callers);
            nint kept = driver.AllocateHost(sizeof(int) * plan.KeptPairs);
            driver.CopyToHost(memory.KeptIndices.Address, kept, sizeof(int) * plan.KeptPairs, callers);
            callers.Synchronize();
            Assert.Equal(expected, new Span<int>((void*)kept, expected.Length).ToArray());
        }
        GC.KeepAlive(layer);
    }

    [Fact]
    public void A_layer_beside_the_callers_work_is_captured_with_it()
    {
        var layer = TestLayer.Random(5, [60, 30], 4, 2, 64, ElementType.BFloat16);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper with { SketchDimension = 16 }, Budget.Retention(0.4));
        using var device = new Device(beside: true);
        var inputs = device.Copy(layer.Inputs);
        var memory = new LayerMemory(device.New<byte>(LayerMemory.WorkspaceBytes(plan)), device.New<int>(plan.KeptPairs), device.New<int>(5));
        device.Backend.Prepare(plan, inputs);
        device.Capture(() =>
        {
            LayerCompressor.Queue(device.Backend, plan, inputs, memory);
            device.Backend.Join();
        })();
        int[] actual = device.Backend.Read(memory.KeptIndices);
        using var selection = LayerCompressor.Select(device.Backend, plan, inputs);
        Assert.Equal(device.Backend.Read(selection.KeptIndices.View), actual);
        Assert.ThrowsAny<Exception>(() => device.Capture(() => LayerCompressor.Queue(device.Backend, plan, inputs, memory))); // not joined
        GC.KeepAlive(layer);
    }

    [Fact]
    public void A_prefill_that_is_not_finite_changes_nothing()
    {
        var layer = TestLayer.Random(2, [100], 2, 2, 64);
        float[] keys = [.. layer.KeyPreRopeValues];
        keys[(40 * 2 + 1) * 64] = float.NaN;
        var broken = TestLayer.From(layer.Shape, keys, layer.QueryValues, layer.KeyValues, layer.ValueValues);
        using var device = new Device();
        using var cache = new PagedCache(device.Backend, new PagedCacheOptions { Layers = 1, KvHeads = 2, HeadDim = 64, ElementType = ElementType.Float32, Blocks = 20, BlockSize = 16 });
        var sequence = cache.CreateSequence();
        using (var pending = CacheCompressor.StorePrefill([sequence], 0, new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.5)), device.Copy(broken.Inputs)))
            Assert.Contains("token 40 of sequence 0, head 1", Assert.Throws<CompactorException>(pending.Complete).Message);
        Assert.Equal(20, cache.FreeBlocks);
        Assert.Equal([0, 0], sequence.Lengths(0).ToArray());
    }

    private static void CheckAttention(ElementType type, int dim, int group, int blockSize)
    {
        const int KvHeads = 2;
        var random = new Random(dim + group);
        int[] lengths = [600, 1, 0, 37, 90, 512];
        int sequences = lengths.Length / KvHeads, stride = (600 + blockSize - 1) / blockSize, blocks = lengths.Length * stride;
        int[] tables = [.. Enumerable.Range(0, blocks)];
        random.Shuffle(tables);
        byte[] keys = Arrays.Encode(Draw(blocks * blockSize * dim), type), values = Arrays.Encode(Draw(blocks * blockSize * dim), type), query = Arrays.Encode(Draw(sequences * KvHeads * group * dim), type);
        foreach (var options in (AttentionOptions[])[new(), new() { Scale = 0.7, SoftCap = 3 }])
        {
            using var device = new Device();
            using var cpu = new CpuBackend(1);
            var (output, sums) = Run(device.Backend, device.Copy<byte>(keys), device.Copy<byte>(values), device.Copy<byte>(query), device.Copy<int>(tables), device.Copy<int>(lengths), options);
            var (expected, expectedSums) = Run(cpu, Host(keys), Host(values), Host(query), Pinned(tables), Pinned(lengths), options);
            Assert.InRange(Arrays.RelativeError(output, expected), 0, 2e-5);
            for (int i = 0; i < sums.Length; i++)
                Assert.True(sums[i] == expectedSums[i] || Math.Abs(sums[i] - expectedSums[i]) < 2e-5 * Math.Max(1, Math.Abs(expectedSums[i])), $"log-sum-exp {i}: {sums[i]} instead of {expectedSums[i]}");
        }
        GC.KeepAlive((keys, values, query));

        (float[], float[]) Run(KvBackend backend, BufferView<byte> k, BufferView<byte> v, BufferView<byte> q, BufferView<int> t, BufferView<int> l, AttentionOptions options)
        {
            using var output = backend.Allocate<float>(sequences * KvHeads * group * dim);
            using var sums = backend.Allocate<float>(sequences * KvHeads * group);
            backend.DecodeAttention(PagedView.HeadBlocks(k.Address, v.Address, type, blockSize, dim), TensorView.Packed(q.Address, type, sequences, KvHeads * group, dim), KvHeads,
                new PagedTables(t, stride, l), options, output.View, sums.View);
            return (backend.Read(output.View), backend.Read(sums.View));
        }

        float[] Draw(int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() * 2 - 1))];

        static BufferView<byte> Host(byte[] pinned) => new(Arrays.Address(pinned), pinned.Length);

        static BufferView<int> Pinned(int[] list)
        {
            int[] pinned = GC.AllocateArray<int>(list.Length, pinned: true);
            list.CopyTo(pinned, 0);
            s_kept.Add(pinned);
            return new(System.Runtime.InteropServices.Marshal.UnsafeAddrOfPinnedArrayElement(pinned, 0), list.Length);
        }
    }

    private static readonly System.Collections.Concurrent.ConcurrentBag<int[]> s_kept = [];

    private static void Check(ElementType type, int steps, int seed)
    {
        var random = new Random(seed);
        var device = new Device((ulong)seed);
        using var model = new PagedCacheModel(device.Backend, type, 90, dim: 64);
        for (int i = 0; i < steps; i++)
        {
            var kind = random.Next(20) switch { 0 or 1 => Kind.Create, 2 or 3 or 4 => Kind.Store, 5 or 6 => Kind.StoreSurvivors, 7 or 8 or 9 => Kind.Append, 10 or 11 => Kind.Compact, 12 => Kind.Cancel, 13 => Kind.Fork, 14 => Kind.Reserve, 15 or 16 => Kind.Recompress, 17 => Kind.Exhaust, _ => Kind.Free };
            model.Do(new Step(kind, random.Next(64), random.Next()), checkEverything: i % 25 == 0);
        }
        Assert.True(model.Done > steps / 4, $"only {model.Done} of {steps} operations were done");
    }

    [Fact]
    public void A_store_that_the_backend_refuses_gives_its_blocks_back()
    {
        using var device = new Device();
        using var cache = new PagedCache(device.Backend, new PagedCacheOptions { Layers = 1, KvHeads = 1, HeadDim = 1, ElementType = ElementType.Float32, Blocks = 8, BlockSize = 16 });
        using var sequence = cache.CreateSequence();
        var rows = device.New<float>(40);
        var view = TensorView.Packed(rows.Address, ElementType.Float32, 40, 1, 1);
        Assert.Equal(CompactorStatus.Unsupported, Assert.Throws<CompactorException>(() => sequence.Store(0, view, view, 0, 40, 0)).Status);
        Assert.Equal(8, cache.FreeBlocks);
        Assert.Equal(0, sequence.Lengths(0)[0]);
    }
}
