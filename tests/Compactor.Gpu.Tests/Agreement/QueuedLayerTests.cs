using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Gpu;
using Compactor.Native.Paging;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.Agreement;

/// <summary>
/// A layer's compression only queues work: captured in a graph, during which the driver refuses to allocate, free, copy to or from the host, load, ask or wait, it gives what it gives
/// outside of one, as often as the graph is launched, whatever the memory holds then.
/// </summary>
public class QueuedLayerTests
{
    public static TheoryData<string, SelectionScope, int> Layers =>
    [
        .. from preset in CompressionPresets.ByName.Keys from scope in Enum.GetValues<SelectionScope>() select (preset, scope, 0),
        ("paper", SelectionScope.Sequence, 5),
    ];

    [Theory]
    [MemberData(nameof(Layers))]
    public void A_dense_layer_is_captured(string preset, SelectionScope scope, int minimum)
    {
        var layers = new[] { Layer(1), Layer(2) };
        var plan = Plan(layers[0].Shape, preset, scope, minimum);
        using var device = new Device(seed: 7);
        var (inputs, memory) = (device.Copy(layers[0].Inputs), Memory(device, plan));
        var keys = device.New<byte>(plan.KeptPairs * 128);
        device.Backend.Prepare(plan, inputs);
        var launch = device.Capture(() =>
        {
            LayerCompressor.Queue(device.Backend, plan, inputs, memory);
            device.Backend.Compact(plan, inputs.Key, memory.KeptIndices, memory.KeptOffsets, keys);
        });
        // A plan that needs more scratch comes in between.
        var longer = TestLayer.Random(3, [900], 4, 2, 64, ElementType.BFloat16);
        LayerCompressor.Select(device.Backend, Plan(longer.Shape, preset, scope, minimum), device.Copy(longer.Inputs)).Dispose();
        foreach (var layer in layers)
        {
            Overwrite(device, inputs, layer.Inputs);
            launch();
            var actual = (device.Backend.Read(memory.KeptIndices), device.Backend.Read(memory.KeptOffsets), device.Backend.Read(keys));
            using var status = device.Backend.TakeStatus(plan);
            status.ThrowIfFailed();
            using var selection = LayerCompressor.Select(device.Backend, plan, inputs);
            using var survivors = selection.Compact(inputs.Key);
            Assert.Equal(device.Backend.Read(selection.KeptIndices.View), actual.Item1);
            Assert.Equal(device.Backend.Read(selection.KeptOffsets.View), actual.Item2);
            Assert.Equal(device.Backend.Read(survivors.View), actual.Item3);
            GC.KeepAlive(layer);
        }
        GC.KeepAlive(longer);
    }

    [Theory]
    [InlineData("paper", SelectionScope.Sequence, 0)]
    [InlineData("compactor-vllm", SelectionScope.Head, 3)]
    public void A_layer_of_a_paged_cache_is_captured(string preset, SelectionScope scope, int minimum)
    {
        var layer = TestLayer.Random(4, [130, 1, 70], 4, 2, 64, ElementType.BFloat16);
        using var device = new Device(seed: 8);
        var backend = device.Backend;
        using var cache = new PagedCache(backend, new PagedCacheOptions { Layers = 1, KvHeads = 2, HeadDim = 64, ElementType = ElementType.BFloat16, Blocks = 120, BlockSize = 16 });
        CacheSequence[] sequences = [cache.CreateSequence(), cache.CreateSequence(), cache.CreateSequence()];
        using (var stored = CacheCompressor.StorePrefill(sequences, 0, Plan(layer.Shape, "paper", SelectionScope.Sequence, 0), device.Copy(layer.Inputs)))
            stored.Complete();
        var rotary = RotaryEmbedding.FromTheta(10000, 64);
        var plan = new LayerPlan(CacheCompressor.HeldShape(sequences, 0), Plan(layer.Shape, preset, scope, minimum).Options, Budget.Retention(0.5));
        var memory = Memory(device, plan);
        LayerTable[] tables = [.. sequences.Select(s => s.Table(0))];
        int[] reserved = cache.Take(30, "A test"), starts = [0, 14, 18];
        using var held = CallTables.Held(backend, tables, 16, out var from);
        using var dealt = CallTables.Targets(backend, tables, 16, replace: true, [], reserved, starts, out var targets);
        backend.PrepareOfSlots(plan, cache.Slots, rotary, 130);
        var launch = device.Capture(() =>
        {
            BufferView<float> leverage = memory.Scores(plan, 0), scores = memory.Scores(plan, 1);
            backend.LeverageOfSlots(plan, cache.Slots, from, rotary, 130, plan.Sketch, leverage);
            backend.Fuse(plan, leverage, null, default, scores);
            backend.SelectFused(plan, scores, memory.KeptIndices, memory.KeptOffsets);
            backend.MoveSurvivors(cache.Slots, from, memory.KeptIndices, memory.KeptOffsets, targets);
        });
        launch();
        using var status = backend.TakeStatus(plan);
        status.ThrowIfFailed();
        int[] indices = backend.Read(memory.KeptIndices), offsets = backend.Read(memory.KeptOffsets), blocks = backend.Read(targets.Reserved);
        using var selection = CacheCompressor.SelectHeld(sequences, 0, plan, rotary);
        Assert.Equal(backend.Read(selection.KeptIndices.View), indices);
        Assert.Equal(backend.Read(selection.KeptOffsets.View), offsets);
        for (int row = 0, at = 0; row < 6; row++)
        {
            at = row % 2 == 0 ? starts[row / 2] : at;
            var (positions, _, _) = sequences[row / 2].Read(0, row % 2);
            int kept = offsets[row + 1] - offsets[row];
            for (int i = 0; i < kept; i++)
                Assert.Equal(positions[indices[offsets[row] + i]], backend.Read(cache.Slots.Positions.Slice(blocks[at + i / 16] * 16 + i % 16, 1))[0]);
            at += (kept + 15) / 16;
        }
        cache.Give(reserved, 0);
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Decode_attention_is_captured_once_it_has_run()
    {
        using var device = new Device(seed: 9);
        var (cache, tables, query) = Attended(device, tokens: 2);
        var outputs = Captured(device, 2 * 4 * 64, output => device.Backend.DecodeAttention(cache, query, 2, tables, new AttentionOptions(), output));
        Assert.Equal(outputs.Direct, outputs.Launched);
    }

    [Theory]
    [InlineData(0, 1)]
    [InlineData(3, 40)]   // the first few are split over keys, the second many are not
    public void Extend_attention_is_captured_once_its_plan_has_run(int first, int second)
    {
        using var device = new Device(seed: 9);
        var (cache, tables, query) = Attended(device, first + second);
        var plan = new ExtendPlan([0, first, first + second], 4, 2);
        var outputs = Captured(device, (first + second) * 4 * 64, output => device.Backend.ExtendAttention(plan, cache, query, tables, new AttentionOptions(), output));
        Assert.Equal(outputs.Direct, outputs.Launched);
    }

    private static (float[] Direct, float[] Launched) Captured(Device device, int count, Action<BufferView<float>> attend)
    {
        BufferView<float> direct = device.New<float>(count), launched = device.New<float>(count);
        attend(direct);
        device.Capture(() => attend(launched))();
        return (device.Backend.Read(direct), device.Backend.Read(launched));
    }

    /// <summary>A cache of two sequences with two heads, which hold 150, 21, 40 and 77 slots, and queries of 4 heads.</summary>
    private static (PagedView Cache, PagedTables Tables, TensorView Query) Attended(Device device, int tokens)
    {
        byte[] Draw(int seed, int count)
        {
            var random = new Random(seed);
            return Arrays.Encode([.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() * 2 - 1))], ElementType.BFloat16);
        }
        var cache = PagedView.HeadBlocks(device.Copy<byte>(Draw(1, 40 * 16 * 64)).Address, device.Copy<byte>(Draw(2, 40 * 16 * 64)).Address, ElementType.BFloat16, 16, 64);
        var tables = new PagedTables(device.Copy<int>([.. Enumerable.Range(0, 40)]), 10, device.Copy<int>([150, 21, 40, 77]));
        return (cache, tables, TensorView.Packed(device.Copy<byte>(Draw(3, tokens * 4 * 64)).Address, ElementType.BFloat16, tokens, 4, 64));
    }

    [Fact]
    public void A_larger_plan_does_not_disturb_a_smaller_one_in_flight()
    {
        TestLayer small = Layer(1), large = TestLayer.Random(3, [900], 4, 2, 64, ElementType.BFloat16);
        LayerPlan smallPlan = Plan(small.Shape, "paper", SelectionScope.Sequence, 0), largePlan = Plan(large.Shape, "paper", SelectionScope.Sequence, 0);
        var alone = new List<int[]>();
        foreach (var (layer, plan) in ((TestLayer, LayerPlan)[])[(small, smallPlan), (large, largePlan)])
        {
            using var device = new Device();
            using var selection = LayerCompressor.Select(device.Backend, plan, device.Copy(layer.Inputs));
            alone.Add(device.Backend.Read(selection.KeptIndices.View));
        }
        for (ulong seed = 1; seed <= 5; seed++)
        {
            using var device = new Device(seed);
            using var first = LayerCompressor.Select(device.Backend, smallPlan, device.Copy(small.Inputs));
            using var second = LayerCompressor.Select(device.Backend, largePlan, device.Copy(large.Inputs));
            Assert.Equal(alone[0], device.Backend.Read(first.KeptIndices.View));
            Assert.Equal(alone[1], device.Backend.Read(second.KeptIndices.View));
        }
        GC.KeepAlive((small, large));
    }

    [Fact]
    public void Slices_of_a_workspace_do_not_touch()
    {
        var random = new Random(1);
        for (int round = 0; round < 200; round++)
        {
            long[] bytes = [.. Enumerable.Range(0, random.Next(1, 6)).Select(_ => random.NextInt64(0, 2000))];
            var layout = new WorkspaceLayout(bytes);
            long end = 0;
            for (int i = 0; i < bytes.Length; i++)
            {
                Assert.Equal(0UL, layout[i] % 256);
                Assert.True((long)layout[i] >= end, $"slice {i} of {string.Join(", ", bytes)} starts at {layout[i]}");
                end = (long)layout[i] + bytes[i] + 256;
            }
            Assert.InRange(layout.Bytes, end, end + 255);
        }
    }

    [Fact]
    public void A_plan_that_is_not_prepared_is_not_captured()
    {
        Device.RequireEmulator("refuses all that a captured stream must not see, modules that are loaded among it");
        var layer = Layer(1);
        var plan = Plan(layer.Shape, "paper", SelectionScope.Sequence, 0);
        using var device = new Device();
        var (inputs, memory) = (device.Copy(layer.Inputs), Memory(device, plan));
        Assert.Contains("while a stream is captured", Assert.Throws<InvalidOperationException>(() =>
            device.Capture(() => LayerCompressor.Queue(device.Backend, plan, inputs, memory))).Message);
        GC.KeepAlive(layer);
    }

    [Fact]
    public void A_plan_that_keeps_everything_has_nothing_to_queue()
    {
        var layer = Layer(1);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(1));
        using var device = new Device();
        Assert.Contains("keeps all 482 pairs", Assert.Throws<CompactorException>(() => LayerCompressor.Queue(device.Backend, plan, layer.Inputs, Memory(device, plan))).Message);
        GC.KeepAlive(layer);
    }

    private static TestLayer Layer(int seed) => TestLayer.Random(seed, [150, 1, 90], 4, 2, 64, ElementType.BFloat16);

    private static LayerPlan Plan(LayerShape shape, string preset, SelectionScope scope, int minimum) =>
        new(shape, CompressionPresets.ByName[preset] with { SketchDimension = 16, SelectionScope = scope, MinTokensPerHead = minimum, ProtectFirst = 2, ProtectLast = 3 }, Budget.Retention(0.4));

    private static LayerMemory Memory(Device device, LayerPlan plan) =>
        new(device.New<byte>(Math.Max(1, LayerMemory.WorkspaceBytes(plan))), device.New<int>(plan.KeptPairs), device.New<int>(plan.Shape.Sequences * plan.Shape.KvHeads + 1));

    private static void Overwrite(Device device, LayerInputs copy, LayerInputs host)
    {
        device.Overwrite(copy.Key, host.Key);
        device.Overwrite(copy.Value, host.Value);
        device.Overwrite(copy.KeyPreRope!.Value, host.KeyPreRope!.Value);
        device.Overwrite(copy.Query!.Value, host.Query!.Value);
    }
}
