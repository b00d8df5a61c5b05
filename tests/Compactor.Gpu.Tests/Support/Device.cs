using Compactor.Gpu.Tests.Simt;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Gpu;

namespace Compactor.Gpu.Tests.Support;

/// <summary>The GPU backend on the emulator, and what tests put into its memory.</summary>
internal sealed class Device : IDisposable
{
    private readonly List<IDisposable> _held = [];

    /// <param name="seed">Of the emulator.</param>
    /// <param name="architecture">Compute capability.</param>
    /// <param name="checksRaces">Whether data races are looked for.</param>
    /// <param name="beside">Whether the backend works on a side stream, beside <see cref="Stream"/>.</param>
    /// <param name="hopper">Whether kernels for sm_90a are used.</param>
    public Device(ulong seed = 1, int architecture = 90, bool checksRaces = false, bool beside = false, bool hopper = false)
    {
        Driver = new SimtDriver(seed, seed, architecture) { ChecksRaces = checksRaces, HopperKernels = hopper };
        Stream = (SimtStream)Driver.CreateStream();
        Backend = beside ? new GpuBackend(Driver, Driver.CreateStream(), Stream) : new GpuBackend(Driver, Stream);
    }

    public SimtDriver Driver { get; }

    /// <summary>The caller's stream.</summary>
    public SimtStream Stream { get; }

    public GpuBackend Backend { get; }

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
        foreach (var held in _held)
            held.Dispose();
        Backend.Dispose();
    }

    private BackendBuffer<T> Hold<T>(BackendBuffer<T> buffer) where T : unmanaged
    {
        _held.Add(buffer);
        return buffer;
    }
}
