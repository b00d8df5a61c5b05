using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.OnDevice;

/// <summary>Much in flight at once: layers by the thousand, a model's layers in one graph, two streams, one device out of memory. Whatever is queued, each layer keeps what it keeps alone.</summary>
[Collection(WholeDevice.Name)]
public class QueueingTests
{
    private static readonly TestLayer[] s_layers = [.. Enumerable.Range(1, 4).Select(seed => TestLayer.Random(seed, [150, 1, 90], 4, 2, 64, ElementType.BFloat16))];

    private static readonly LayerPlan s_plan = new(s_layers[0].Shape, CompressionPresets.Paper with { SketchDimension = 16, ProtectFirst = 2, ProtectLast = 3 }, Budget.Retention(0.4));

    private static readonly Lazy<int[][]> s_kept = new(() =>
    {
        using var device = new Device();
        return [.. s_layers.Select(layer => Kept(device.Backend, device.Copy(layer.Inputs)))];
    });

    [Theory]
    [InlineData(12)]
    [InlineData(1000)]
    public void Layers_in_flight_keep_what_they_keep_alone(int layers)
    {
        if (layers > 12)
            Device.RequireGpu("compresses a thousand layers in a moment");
        using var device = new Device(seed: 3);
        LayerInputs[] inputs = [.. s_layers.Select(layer => device.Copy(layer.Inputs))];
        var selections = new List<LayerSelection>();
        try
        {
            for (int i = 0; i < layers; i++)
                selections.Add(LayerCompressor.Select(device.Backend, s_plan, inputs[i % inputs.Length]));
            for (int i = 0; i < layers; i++)
            {
                selections[i].Status.ThrowIfFailed();
                Assert.True(s_kept.Value[i % inputs.Length].AsSpan().SequenceEqual(device.Backend.Read(selections[i].KeptIndices.View)), $"layer {i} keeps other tokens than alone");
            }
        }
        finally
        {
            selections.ForEach(selection => selection.Dispose());
        }
    }

    [Theory]
    [InlineData(4, 2)]
    [InlineData(32, 100)]
    public void A_model_is_one_graph_launched_again_and_again(int layers, int launches)
    {
        if (layers > 4)
            Device.RequireGpu("launches a large graph a hundred times in a moment");
        using var device = new Device(seed: 4);
        LayerInputs[] inputs = [.. Enumerable.Range(0, layers).Select(i => device.Copy(s_layers[i % s_layers.Length].Inputs))];
        LayerMemory[] memories = [.. inputs.Select(_ => Memory(device))];
        device.Backend.Prepare(s_plan, inputs[0]);
        var launch = device.Capture(() =>
        {
            for (int i = 0; i < layers; i++)
                LayerCompressor.Queue(device.Backend, s_plan, inputs[i], memories[i]);
        });
        for (int n = 0; n < launches; n++)
        {
            foreach (var memory in memories)
                device.Backend.Upload<int>(new int[memory.KeptIndices.Length], memory.KeptIndices);
            launch();
            if (n == 0 || n == launches - 1)
                for (int i = 0; i < layers; i++)
                    Assert.Equal(s_kept.Value[i % s_layers.Length], device.Backend.Read(memories[i].KeptIndices));
        }
        using var status = device.Backend.TakeStatus(s_plan);
        status.ThrowIfFailed();
    }

    [Fact]
    public void A_plan_that_is_not_prepared_says_what_to_do_and_can_be_captured_afterwards()
    {
        Device.RequireGpu("refuses as CUDA does");
        using var device = new Device();
        // Longer than what has run: its workspace has to grow.
        var layer = TestLayer.Random(9, [3000], 4, 2, 64, ElementType.BFloat16);
        var plan = new LayerPlan(layer.Shape, s_plan.Options, Budget.Retention(0.4));
        var inputs = device.Copy(layer.Inputs);
        var memory = new LayerMemory(device.New<byte>(LayerMemory.WorkspaceBytes(plan)), device.New<int>(plan.KeptPairs), device.New<int>(3));
        Assert.Contains("is being captured into a graph; prepare", Assert.Throws<CompactorException>(() => device.Capture(() => LayerCompressor.Queue(device.Backend, plan, inputs, memory))).Message);
        int[] alone = Kept(device.Backend, inputs, plan);
        device.Backend.Prepare(plan, inputs);
        device.Capture(() => LayerCompressor.Queue(device.Backend, plan, inputs, memory))();
        Assert.Equal(alone, device.Backend.Read(memory.KeptIndices));
        GC.KeepAlive(layer);
    }

    [Theory]
    [InlineData(3)]
    [InlineData(200)]
    public void Two_streams_of_two_threads_do_not_disturb_each_other(int rounds)
    {
        if (rounds > 3)
            Device.RequireGpu("runs two streams at once");
        int[][] alone = s_kept.Value;
        Task[] threads = [.. Enumerable.Range(0, 2).Select(thread => Task.Run(() =>
        {
            using var device = new Device(seed: (ulong)thread + 1);
            LayerInputs[] inputs = [.. s_layers.Select(layer => device.Copy(layer.Inputs))];
            for (int round = 0; round < rounds; round++)
            {
                int i = (round + thread) % inputs.Length;
                Assert.Equal(alone[i], Kept(device.Backend, inputs[i]));
            }
        }))];
        Task.WaitAll(threads, TestContext.Current.CancellationToken);
    }

    [Fact]
    public void A_device_out_of_memory_names_the_error_and_goes_on()
    {
        Device.RequireGpu("runs out of memory");
        const long Piece = 1L << 30;
        using var device = new Device();
        var inputs = device.Copy(s_layers[0].Inputs);
        AssertOutOfMemory(Assert.Throws<CompactorException>(() => device.Backend.Allocate<byte>(1L << 46)), 1L << 46);
        Assert.Equal(s_kept.Value[0], Kept(device.Backend, inputs));
        var pieces = new List<BackendBuffer<byte>>();
        try
        {
            AssertOutOfMemory(Assert.Throws<CompactorException>(FillUp), Piece);
        }
        finally
        {
            pieces.ForEach(piece => piece.Dispose());
        }
        Assert.Equal(s_kept.Value[0], Kept(device.Backend, inputs));
        device.Backend.Allocate<byte>(Piece).Dispose();

        void FillUp()
        {
            while (pieces.Count < 1024) // no device has a tebibyte
                pieces.Add(device.Backend.Allocate<byte>(Piece));
        }

        static void AssertOutOfMemory(CompactorException failure, long bytes)
        {
            Assert.Equal(CompactorStatus.OutOfMemory, failure.Status);
            Assert.Matches($@"Allocating {bytes} bytes on .* failed: CUDA_ERROR_OUT_OF_MEMORY \(2\).* \d+ of \d+ bytes are free\.", failure.Message);
        }
    }

    private static LayerMemory Memory(Device device) =>
        new(device.New<byte>(LayerMemory.WorkspaceBytes(s_plan)), device.New<int>(s_plan.KeptPairs), device.New<int>(s_plan.Shape.Sequences * s_plan.Shape.KvHeads + 1));

    private static int[] Kept(KvBackend backend, LayerInputs inputs, LayerPlan? plan = null)
    {
        using var selection = LayerCompressor.Select(backend, plan ?? s_plan, inputs);
        selection.Status.ThrowIfFailed();
        return backend.Read(selection.KeptIndices.View);
    }
}
