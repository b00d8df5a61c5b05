using System.Diagnostics;
using System.Runtime.InteropServices;
using Compactor.Gpu.Tests.Interop;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;
using Compactor.Native.Tests.Support;
using Xunit;
using Exports = Compactor.Abi.Exports;
using Layer = Compactor.Abi.Layer;
using Status = Compactor.Abi.Status;
using Tensor = Compactor.Abi.Tensor;

namespace Compactor.Gpu.Tests.Driver;

/// <summary>The CUDA driver behind the seam, over a driver library that has no device: contexts, errors, memory, and what is left when it is closed.</summary>
public sealed unsafe class CudaDriverTests : IDisposable
{
    private static readonly Lazy<string> s_library = new(Build);

    private readonly string _kernels = Directory.CreateTempSubdirectory("compactor-driver-").FullName;
    private readonly nint _fake = NativeLibrary.Load(s_library.Value);

    public CudaDriverTests() => Reset(12040, 90, 1);

    public void Dispose() => Directory.Delete(_kernels, recursive: true);

    [Fact]
    public void Everything_created_is_destroyed_and_no_context_stays_current()
    {
        using (var backend = GpuBackend.Open(Options()))
        {
            Assert.Equal("Fake GPU, compute capability 9.0, 132 multiprocessors, 80 GiB, driver CUDA 12.4", backend.Description);
            Assert.Equal("NVRTC 12.4", backend.Compiler);
            using var buffer = backend.Allocate<int>(1000);
            int[] values = [.. Enumerable.Range(0, 1000)];
            backend.Upload<int>(values, buffer.View);
            Assert.Equal(values, backend.Read(buffer.View));
            Assert.Equal(0, Get("fake_depth"));
            Assert.Equal(1, Get("fake_retained"));
            Assert.True(Get("fake_alive") > 0);
        }
        Assert.Equal((0, 0, 0), (Get("fake_alive"), Get("fake_retained"), Get("fake_depth")));
    }

    [Fact]
    public void A_context_of_the_caller_stays_the_callers()
    {
        using (GpuBackend.Open(Options() with { Context = 0x77, Stream = 0x78 }))
            Assert.Equal(0, Get("fake_retained"));
        Assert.Equal((0, 0, 0), (Get("fake_alive"), Get("fake_retained"), Get("fake_depth")));
    }

    [Fact]
    public void A_stream_of_the_caller_lets_go_of_the_primary_context()
    {
        using (GpuBackend.Open(Options() with { Stream = 0x78 }))
            Assert.Equal(1, Get("fake_retained"));
        Assert.Equal((0, 0, 0), (Get("fake_alive"), Get("fake_retained"), Get("fake_depth")));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(0)] // a device without stream-ordered memory
    public void Memory_given_back_is_used_again_without_asking_the_driver(int pools)
    {
        Reset(12040, 90, pools);
        using var driver = CudaDriver.Open(Options());
        using var stream = driver.CreateStream();
        nint first = driver.Allocate(5000, stream);
        driver.Free(first, stream);
        int asked = Get("fake_allocations");
        Assert.Equal(first, driver.Allocate(5001, stream));
        Assert.Equal(asked, Get("fake_allocations"));
        Assert.NotEqual(first, driver.Allocate(5000, stream));
        Assert.Equal(asked + 1, Get("fake_allocations"));
        driver.Free(first, stream);
    }

    [Fact]
    public void Sizes_are_rounded_up_by_an_eighth_at_most()
    {
        for (long bytes = 1; bytes < 1L << 34; bytes += 1 + bytes / 3)
            Assert.InRange(CudaMemory.Round(bytes), bytes, Math.Max(bytes + 256, bytes + bytes / 8));
    }

    [Fact]
    public void Too_little_memory_names_how_much_is_free()
    {
        using var driver = CudaDriver.Open(Options());
        using var stream = driver.CreateStream();
        Fail("cuMemAllocAsync", 2);
        var exception = Assert.Throws<CompactorException>(() => driver.Allocate(1 << 20, stream));
        Assert.Equal(CompactorStatus.OutOfMemory, exception.Status);
        Assert.Contains("Allocating 1048576 bytes on Fake GPU failed: CUDA_ERROR_OUT_OF_MEMORY (2), out of memory. 1000 of 2000 bytes are free.", exception.Message);
    }

    [Fact]
    public void A_refused_launch_names_kernel_and_shape()
    {
        using var driver = CudaDriver.Open(Options());
        using var stream = driver.CreateStream();
        var kernel = driver.Load(RowMoves.Deal(128, ElementType.BFloat16));
        Fail("cuLaunchKernel", 701);
        var exception = Assert.Throws<CompactorException>(() => driver.Launch(kernel, new LaunchShape(7, 128, 99), 1L, stream));
        Assert.Equal(CompactorStatus.DeviceFailed, exception.Status);
        Assert.Contains("Launching deal_blocks (compact.cu COMPACTOR_ELEMENT_SIZE=2 COMPACTOR_HEAD_DIM=128), grid 7 x 1 x 1, 128 threads, 99 bytes of shared memory failed: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)", exception.Message);
        Assert.Equal(0, Get("fake_depth"));
    }

    [Fact]
    public void A_kernel_that_could_not_be_loaded_once_is_tried_again()
    {
        using var driver = CudaDriver.Open(Options());
        var variant = RowMoves.Deal(128, ElementType.BFloat16);
        foreach (string call in (string[])["cuModuleLoadDataEx", "cuModuleGetFunction"])
        {
            Fail(call, 2);
            Assert.Throws<CompactorException>(() => driver.Load(variant));
        }
        Fail("", 0);
        Assert.Same(driver.Load(variant), driver.Load(variant));
    }

    [Fact]
    public void Work_that_failed_is_told_by_whoever_waits()
    {
        using var driver = CudaDriver.Open(Options());
        using var stream = driver.CreateStream();
        using var recorded = driver.Record(stream);
        Fail("cuEventQuery", 700);
        Assert.Contains("CUDA_ERROR_ILLEGAL_ADDRESS (700), an illegal memory access was encountered", Assert.Throws<CompactorException>(() => recorded.HasPassed).Message);
        Fail("cuEventQuery", 600);
        Assert.False(recorded.HasPassed);
        Fail("cuEventSynchronize", 700);
        Assert.Contains("cuEventSynchronize", Assert.Throws<CompactorException>(recorded.Wait).Message);
    }

    [Fact]
    public void A_backend_whose_device_failed_releases_everything_and_tells()
    {
        var backend = GpuBackend.Open(Options());
        backend.Allocate<int>(1000).Dispose();
        Fail("cuStreamSynchronize", 700);
        Assert.Contains("cuStreamSynchronize", Assert.Throws<CompactorException>(backend.Dispose).Message);
        Assert.Equal((0, 0, 0), (Get("fake_alive"), Get("fake_retained"), Get("fake_depth")));
    }

    [Fact]
    public void A_status_that_cannot_be_waited_for_leaves_no_event()
    {
        using var backend = GpuBackend.Open(Options());
        var plan = new LayerPlan(new LayerShape([0, 100], 2, 2, 128, ElementType.BFloat16), CompressionPresets.KvPress, Budget.Retention(0.5));
        backend.TakeStatus(plan).Dispose();
        int alive = Get("fake_alive");
        var status = backend.TakeStatus(plan);
        Fail("cuEventSynchronize", 700);
        Assert.Throws<CompactorException>(status.ThrowIfFailed);
        Assert.Throws<CompactorException>(status.Dispose);
        status.Dispose();
        Assert.Equal(alive, Get("fake_alive"));
    }

    [Fact]
    public void A_compaction_on_a_failed_device_can_be_ended()
    {
        using var host = new AbiHost(GpuBackend.Open(Options()));
        var one = TestLayer.Random(6, [100], 2, 1, 64);
        ulong plan = host.Plan(one.Shape, preset: 0, 0.5), sequence = host.Sequence(one.Shape, 32), compaction;
        Tensor key = host.Copy(one.Inputs.Key), value = host.Copy(one.Inputs.Value);
        var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &key, Policy = 1 };
        AbiHost.Ok(((delegate* unmanaged<ulong*, int, int, ulong, Layer*, int*, ulong*, Status>)&Exports.SequenceCompress)(&sequence, 1, 0, plan, &layer, null, &compaction));
        Fail("cuEventSynchronize", 700);
        Assert.Equal(Status.DeviceFailed, ((delegate* unmanaged<ulong, Status>)&Exports.CompactionComplete)(compaction));
        Assert.Equal(Status.DeviceFailed, ((delegate* unmanaged<ulong, Status>)&Exports.CompactionCancel)(compaction));
        Assert.Equal(Status.InvalidHandle, ((delegate* unmanaged<ulong, Status>)&Exports.CompactionCancel)(compaction));
        Assert.Equal([0], host.Lengths(sequence, 1));
        Fail("", 0);
    }

    [Fact]
    public void A_handle_whose_context_is_gone_is_let_go_of_in_silence()
    {
        using var driver = CudaDriver.Open(Options());
        using var stream = driver.CreateStream();
        var recorded = driver.Record(stream);
        Fail("cuCtxPushCurrent", 201);
        recorded.Dispose();
        Fail("", 0);
        Assert.Equal(0, Get("fake_depth"));
    }

    [Theory]
    [InlineData(222)]
    [InlineData(209)]
    public void Code_too_new_for_the_driver_says_what_to_change(int status)
    {
        Fail("cuModuleLoadDataEx", status);
        var exception = Assert.Throws<CompactorException>(() => GpuBackend.Open(Options()));
        Assert.Contains("compiled by NVRTC 12.4 for sm_90, into a driver that serves CUDA 12.4", exception.Message);
        Assert.Contains("update it to CUDA 12.4 or later, or use NVRTC 12.4 or older", exception.Message);
    }

    [Fact]
    public void An_old_driver_or_device_is_named()
    {
        Reset(11010, 90, 1);
        Assert.Contains("serves CUDA 11.1; 11.2 or later is needed", Assert.Throws<CompactorException>(() => GpuBackend.Open(Options())).Message);
        Reset(12040, 75, 1);
        Assert.Contains("compute capability 7.5; the kernels need 8.0", Assert.Throws<CompactorException>(() => GpuBackend.Open(Options())).Message);
        Assert.Contains("device 3 does not exist; the driver shows 1 device", Assert.Throws<CompactorException>(() => GpuBackend.Open(Options() with { Device = 3 })).Message);
    }

    [Fact]
    public void Auto_falls_back_with_the_reason()
    {
        Fail("cuInit", 100);
        using var backend = KvBackend.Open(BackendChoice.Auto, out string? fallback, Options());
        Assert.Equal("cpu", backend.Name);
        Assert.Contains("cuInit failed: CUDA_ERROR_OTHER (100)", fallback);
        Assert.Throws<CompactorException>(() => KvBackend.Open(BackendChoice.Cuda, out _, Options()));
        Reset(12040, 90, 1);
        using var gpu = KvBackend.Open(BackendChoice.Auto, out fallback, Options());
        Assert.Equal(("cuda", (string?)null), (gpu.Name, fallback));
    }

    [Fact]
    public void A_steady_load_neither_allocates_nor_waits_and_may_be_captured()
    {
        using var backend = GpuBackend.Open(Options());
        var shape = new LayerShape([0, 700, 1000], 8, 2, 128, ElementType.BFloat16);
        foreach (var preset in CompressionPresets.ByName.Values)
        {
            var plan = new LayerPlan(shape, preset, Budget.Retention(0.5));
            using var memory = backend.Allocate<byte>(1000 * 8 * 128 * 2);
            var key = TensorView.Packed(memory.View.Address, ElementType.BFloat16, 1000, 2, 128);
            using BackendBuffer<float> leverage = backend.Allocate<float>(2000), attention = backend.Allocate<float>(2000), scores = backend.Allocate<float>(2000);
            using BackendBuffer<int> indices = backend.Allocate<int>(plan.KeptPairs), offsets = backend.Allocate<int>(5);
            using var survivors = backend.Allocate<byte>(plan.KeptPairs * 256);
            var sketch = Sketch.Draw(shape, preset);
            Once();
            int asked = Get("fake_allocations"), before = Get("fake_launches");
            // Waiting, asking and allocating would fail.
            Capture(true);
            Once();
            Capture(false);
            Assert.Equal(asked, Get("fake_allocations"));
            Assert.InRange(Get("fake_launches") - before, 8, 16);

            void Once()
            {
                backend.Leverage(plan, key, null, sketch, leverage.View);
                backend.AttentionScores(plan, key with { Heads = 8, TokenStride = 1024 }, key, attention.View);
                backend.Fuse(plan, leverage.View, attention.View, key, scores.View);
                backend.SelectFused(plan, scores.View, indices.View, offsets.View);
                backend.Compact(plan, key, indices.View, offsets.View, survivors.View);
            }
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(0)] // a device without stream-ordered memory
    public void A_prepared_plan_is_captured_and_another_says_what_to_do(int pools)
    {
        Reset(12040, 90, pools);
        using var backend = GpuBackend.Open(Options());
        var shape = new LayerShape([0, 700, 1000], 8, 2, 128, ElementType.BFloat16);
        using var memory = backend.Allocate<byte>(1000 * 8 * 128 * 2);
        var key = TensorView.Packed(memory.View.Address, ElementType.BFloat16, 1000, 2, 128);
        var inputs = new LayerInputs { Key = key, Value = key, Query = TensorView.Packed(memory.View.Address, ElementType.BFloat16, 1000, 8, 128), Rotary = RotaryEmbedding.FromTheta(10000, 128) };
        var plan = new LayerPlan(shape, CompressionPresets.KvPress, Budget.Retention(0.5));
        using var scratch = backend.Allocate<byte>(LayerMemory.WorkspaceBytes(plan));
        using BackendBuffer<int> indices = backend.Allocate<int>(plan.KeptPairs), offsets = backend.Allocate<int>(5);
        var given = new LayerMemory(scratch.View, indices.View, offsets.View);
        Capture(true);
        Assert.Contains("is being captured into a graph; prepare", Assert.Throws<CompactorException>(() => LayerCompressor.Queue(backend, plan, inputs, given)).Message);
        Capture(false);
        backend.Prepare(plan, inputs);
        (int asked, int before) = (Get("fake_allocations"), Get("fake_launches"));
        Assert.Equal(0, before);
        Capture(true);
        LayerCompressor.Queue(backend, plan, inputs, given);
        Capture(false);
        Assert.Equal(asked, Get("fake_allocations"));
        Assert.InRange(Get("fake_launches"), 8, 16);
    }

    [Fact]
    public void A_side_stream_needs_a_stream_to_be_beside()
    {
        Assert.Contains("SideStream is set, but Stream is 0", Assert.Throws<CompactorException>(() => GpuBackend.Open(Options() with { SideStream = true })).Message);
        using (var backend = GpuBackend.Open(Options() with { SideStream = true, Stream = 0x78 }))
            backend.Join();
        Assert.Equal((0, 0, 0), (Get("fake_alive"), Get("fake_retained"), Get("fake_depth")));
    }

    [Fact]
    public void A_graph_is_captured_from_the_callers_stream_and_launched_there_with_one_call()
    {
        using (var backend = GpuBackend.Open(Options() with { SideStream = true, Stream = 0x78 }))
        {
            using BackendBuffer<int> from = backend.Allocate<int>(8), to = backend.Allocate<int>(8);
            int alive = Get("fake_alive");
            using (var graph = backend.Capture(() =>
            {
                Assert.Equal(1, Get("fake_capturing"));
                backend.Download(from.View, to.View);
                backend.Join();
            }))
            {
                Assert.Equal((0, 0), (Get("fake_capturing"), Get("fake_graph_launches")));
                Assert.Equal(alive + 1, Get("fake_alive")); // what is launched; the graph it was made of is gone
                graph.Launch();
                graph.Launch();
                Assert.Equal(2, Get("fake_graph_launches"));
                Assert.Equal(0x78, ((delegate* unmanaged<nint>)NativeLibrary.GetExport(_fake, "fake_stream"))());
                graph.Dispose();
                Assert.Throws<ObjectDisposedException>(graph.Launch);
            }
            Assert.Equal(alive, Get("fake_alive"));
        }
        Assert.Equal((0, 0, 0), (Get("fake_alive"), Get("fake_retained"), Get("fake_depth")));
    }

    [Fact]
    public void A_capture_that_fails_leaves_the_stream_and_no_graph()
    {
        using var backend = GpuBackend.Open(Options());
        backend.Allocate<int>(1000).Dispose();
        int alive = Get("fake_alive");
        Assert.Contains("is being captured into a graph", Assert.Throws<CompactorException>(() => backend.Capture(() => backend.Allocate<int>(1 << 20))).Message);
        foreach (var (call, status, part) in ((string, int, string)[])[("cuStreamBeginCapture", 900, "cuStreamBeginCapture"), ("cuStreamEndCapture", 904, "call Join last"), ("cuGraphInstantiate", 2, "out of memory")])
        {
            Fail(call, status);
            Assert.Contains(part, Assert.Throws<CompactorException>(() => backend.Capture(() => { })).Message);
            Fail("", 0);
            Assert.Equal((alive, 0, 0), (Get("fake_alive"), Get("fake_capturing"), Get("fake_depth")));
        }
        using var graph = backend.Capture(() => { });
        Fail("cuGraphLaunch", 700);
        Assert.Contains("cuGraphLaunch", Assert.Throws<CompactorException>(graph.Launch).Message);
        Fail("", 0);
    }

    [Theory]
    [InlineData("12.4", "")]
    [InlineData("11.8", "attention_scores_hopper is not used: NVRTC 11.8 does not know sm_90a; use 12.0 or later.")]
    [InlineData("none", "attention_scores_hopper is not used: no folder of compiled kernels holds it, and there is no NVRTC.")]
    public void Kernels_for_Hopper_are_used_or_it_is_said_once_why_not(string nvrtc, string announced)
    {
        Reset(12040, 90, 1);
        var options = Options() with { CacheFolder = "" };
        List<string> said = [];
        using var driver = CudaDriver.Open(options with { Search = options.Search with { NvrtcPath = nvrtc == "none" ? "/nowhere/libnvrtc.so" : Nvrtc.PathOf(nvrtc) }, Announce = said.Add });
        var variant = AttentionScoresLaunch.Variant(128, ElementType.BFloat16, 256, driver.Limits);
        Assert.True(variant.IsSpecific);
        Assert.Equal(announced.Length == 0, driver.Has(variant));
        Assert.Equal(announced.Length == 0, driver.Has(variant));
        Assert.Equal(announced, string.Join('\n', said));
    }

    [Fact]
    public void Devices_of_other_kinds_have_no_kernels_of_Hopper_and_nothing_is_said()
    {
        Reset(12040, 86, 1);
        using var driver = CudaDriver.Open(Options() with { Announce = Assert.Fail });
        Assert.False(driver.Limits.HopperKernels);
    }

    private CudaOptions Options() => new()
    {
        Search = new SearchEnvironment { Variable = _ => null, DriverPath = s_library.Value, NvrtcPath = Nvrtc.PathOf("12.4") },
        CacheFolder = Path.Combine(Nvrtc.Repository, "tests", ".nvrtc", "kernels-12.4"),
        KernelFolders = [],
    };

    private void Reset(int version, int capability, int pools) => ((delegate* unmanaged<int, int, int, void>)NativeLibrary.GetExport(_fake, "fake_reset"))(version, capability, pools);

    private void Capture(bool on) => ((delegate* unmanaged<int, void>)NativeLibrary.GetExport(_fake, "fake_capture"))(on ? 1 : 0);

    private int Get(string name) => ((delegate* unmanaged<int>)NativeLibrary.GetExport(_fake, name))();

    private void Fail(string call, int status)
    {
        fixed (byte* text = System.Text.Encoding.UTF8.GetBytes(call + '\0'))
            ((delegate* unmanaged<byte*, int, void>)NativeLibrary.GetExport(_fake, "fake_fail"))(text, status);
    }

    private static string Build()
    {
        string library = Path.Combine(AppContext.BaseDirectory, $"libfakecuda.{Environment.ProcessId}.so");
        using var compiler = Process.Start("g++", ["-x", "c", "-shared", "-fPIC", "-O1", "-w", Path.Combine(AppContext.BaseDirectory, "Driver", "fake_cuda.c"), "-o", library]);
        compiler.WaitForExit();
        return compiler.ExitCode == 0 ? library : throw new InvalidOperationException("g++ does not compile fake_cuda.c");
    }
}
