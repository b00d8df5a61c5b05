using Compactor.Gpu.Tests.Simt;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;
using Xunit;

namespace Compactor.Gpu.Tests.Support;

/// <summary>
/// The GPU backend, and what tests put into its memory: on the emulator, or on the CUDA device of this machine where the environment variable <see cref="Choice"/> says <c>cuda</c>.
/// The same tests run on both, within the same tolerances; the few that only one of the two can do begin with <see cref="RequireEmulator"/> or <see cref="RequireGpu"/>.
/// </summary>
internal sealed class Device : IDisposable
{
    /// <summary><c>cuda</c>, or <c>emulator</c>, which is meant where it is not set.</summary>
    public const string Choice = "COMPACTOR_TEST_DEVICE";

    // The last driver that is closed would take the device's context with it, which takes long to make.
    private static readonly Lazy<CudaDriver> s_context = new(() => CudaDriver.Open(Options));

    private readonly List<IDisposable> _held = [];

    /// <param name="seed">Of the emulator.</param>
    /// <param name="architecture">Compute capability the emulator pretends to have.</param>
    /// <param name="checksRaces">Whether the emulator looks for data races.</param>
    /// <param name="beside">Whether the backend works on a side stream, beside <see cref="Stream"/>.</param>
    /// <param name="hopper">Whether kernels for sm_90a are used.</param>
    public Device(ulong seed = 1, int architecture = 90, bool checksRaces = false, bool beside = false, bool hopper = false)
    {
        Driver = OpenDriver(seed, architecture, checksRaces, hopper);
        Stream = Driver.CreateStream();
        Backend = beside ? new GpuBackend(Driver, Driver.CreateStream(), Stream) : new GpuBackend(Driver, Stream);
    }

    /// <summary>Whether tests run on a GPU.</summary>
    public static bool IsGpu { get; } = Environment.GetEnvironmentVariable(Choice) switch
    {
        null or "" or "emulator" => false,
        "cuda" => true,
        var other => throw new InvalidOperationException($"{Choice} is '{other}'; it can be cuda or emulator."),
    };

    /// <summary>How the CUDA device is opened: kernels are compiled here and now, not taken from what came with the tests.</summary>
    public static CudaOptions Options => new() { KernelFolders = [] };

    public GpuDriver Driver { get; }

    /// <summary>The caller's stream.</summary>
    public GpuStream Stream { get; }

    public GpuBackend Backend { get; }

    /// <summary>Skips the test on a GPU.</summary>
    /// <param name="reason">What only the emulator does.</param>
    public static void RequireEmulator(string reason) => Assert.SkipWhen(IsGpu, $"Only the emulator {reason}.");

    /// <summary>Skips the test on the emulator.</summary>
    /// <param name="reason">What only a GPU has or does.</param>
    public static void RequireGpu(string reason) => Assert.SkipUnless(IsGpu, $"Only a GPU {reason}; {Choice}=cuda runs it where there is one.");

    /// <summary>A driver of the chosen device.</summary>
    public static GpuDriver OpenDriver(ulong seed = 1, int architecture = 90, bool checksRaces = false, bool hopper = false)
    {
        if (!IsGpu)
            return new SimtDriver(seed, seed, architecture) { ChecksRaces = checksRaces, HopperKernels = hopper };
        _ = s_context.Value;
        return CudaDriver.Open(Options with { HopperKernels = hopper });
    }

    /// <summary>Captures what an action queues on <see cref="Stream"/>, instead of doing it.</summary>
    /// <returns>Queues the work there.</returns>
    public Action Capture(Action work)
    {
        if (Driver is SimtDriver simt)
        {
            var (stream, capture) = ((SimtStream)Stream, simt.Capture((SimtStream)Stream, work));
            return () => capture.Launch(stream);
        }
        var graph = Backend.Capture(work);
        _held.Add(graph);
        return graph.Launch;
    }

    /// <summary>A copy of a tensor whose memory is dense from its first to its last row.</summary>
    public unsafe TensorView Copy(in TensorView host)
    {
        long bytes = (long)host.Tokens * host.Heads * host.Dim * host.ElementType.Size();
        var memory = Hold(Backend.Allocate<byte>(bytes));
        Backend.Upload(new ReadOnlySpan<byte>((void*)host.Address, checked((int)bytes)), memory.View);
        return host with { Address = memory.View.Address };
    }

    public BufferView<T> Copy<T>(ReadOnlySpan<T> values) where T : unmanaged
    {
        var memory = Hold(Backend.Allocate<T>(values.Length));
        Backend.Upload(values, memory.View);
        return memory.View;
    }

    /// <summary>Other content for a copy.</summary>
    public unsafe void Overwrite(in TensorView copy, in TensorView host)
    {
        long bytes = (long)host.Tokens * host.Heads * host.Dim * host.ElementType.Size();
        Backend.Upload(new ReadOnlySpan<byte>((void*)host.Address, checked((int)bytes)), new BufferView<byte>(copy.Address, bytes));
    }

    public BufferView<T> New<T>(long length) where T : unmanaged => Hold(Backend.Allocate<T>(length)).View;

    public LayerInputs Copy(LayerInputs inputs) => inputs with
    {
        Key = Copy(inputs.Key),
        Value = Copy(inputs.Value),
        KeyPreRope = inputs.KeyPreRope is { } pre ? Copy(pre) : null,
        Query = inputs.Query is { } query ? Copy(query) : null,
    };

    public void Dispose()
    {
        foreach (var held in Enumerable.Reverse(_held))   // graphs before the memory they use
            held.Dispose();
        Backend.Dispose();
    }

    private BackendBuffer<T> Hold<T>(BackendBuffer<T> buffer) where T : unmanaged
    {
        _held.Add(buffer);
        return buffer;
    }
}
