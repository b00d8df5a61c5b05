using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Gpu;

namespace Compactor.Gpu.Tests.Simt;

/// <summary>
/// The GPU backend's seam on the emulator: the product's own planning and launches, its kernels compiled as C++, on a device that reports what a GPU would only show as
/// wrong results. Work queued runs later, as on a device; faults are thrown by whoever waits for it.
/// </summary>
/// <param name="seed">Of the order of blocks, warps and threads, and of how long queued work is put off. No result may depend on it.</param>
/// <param name="arithmeticSeed">Of the order of sums inside mma and the errors of approximate functions.</param>
/// <param name="architecture">Compute capability it pretends to have: 80, 86, 89 or 90; it decides how much shared memory there is.</param>
internal sealed unsafe class SimtDriver(ulong seed = 1, ulong arithmeticSeed = 1, int architecture = 90) : GpuDriver
{
    private const int Multiprocessors = 4, ThreadsPerMultiprocessor = 1536, ReservedSharedBytes = 1024;

    private static readonly ConcurrentDictionary<string, Lazy<nint>> s_modules = [];

    private readonly Random _random = new((int)seed);
    private readonly HashSet<nint> _allocated = [];
    private readonly HashSet<nint> _pinned = [];
    private ulong _launches = seed << 32;
    private readonly HashSet<KernelVariant> _loaded = [];
    private volatile CompactorException? _failure;
    private volatile SimtCapture? _capture;

    /// <summary>Taken by whoever queues or runs work.</summary>
    public Lock Lock { get; } = new();

    /// <summary>Mean number of memory accesses between preemptions.</summary>
    public int PreemptEvery { get; init; } = 256;

    /// <summary>Whether accesses are checked for data races.</summary>
    public bool ChecksRaces { get; init; } = true;

    /// <summary>Whether kernels for sm_90a are used.</summary>
    public bool HopperKernels { get; init; }

    public override string Description => $"SIMT emulator, seeds {seed} and {arithmeticSeed}, as compute capability {architecture / 10}.{architecture % 10}";

    public override GpuLimits Limits => architecture switch
    {
        80 => new(80, Multiprocessors, 163 * 1024, 164 * 1024),
        86 or 89 => new(architecture, Multiprocessors, 99 * 1024, 100 * 1024),
        90 => new(90, Multiprocessors, 227 * 1024, 228 * 1024, HopperKernels),
        _ => throw new ArgumentOutOfRangeException(nameof(architecture), architecture, "The emulator knows 80, 86, 89 and 90."),
    };

    /// <summary>Device allocations not freed yet.</summary>
    public int Allocations
    {
        get
        {
            lock (Lock)
                return _allocated.Count;
        }
    }

    /// <summary>Captures what an action queues on a stream.</summary>
    public SimtCapture Capture(SimtStream stream, Action work)
    {
        var capture = stream.Capture = _capture = new SimtCapture(stream);
        try
        {
            work();
        }
        finally
        {
            stream.Capture = _capture = null;
        }
        capture.End();
        return capture;
    }

    /// <summary>Throws while something is captured.</summary>
    internal void RefuseInCapture(string call)
    {
        if (_capture is not null)
            throw new InvalidOperationException($"{call} was called while a stream is captured.");
    }

    public override GpuKernel Load(KernelVariant variant)
    {
        lock (Lock)
            if (_loaded.Add(variant))
                RefuseInCapture($"cuModuleLoad of {variant}");
        nint module = s_modules.GetOrAdd(variant.Module, _ => new(() => NativeLibrary.Load(SimtCompiler.Compile(variant)))).Value;
        if (!NativeLibrary.TryGetExport(module, $"simt_entry_{variant.Entry}", out nint entry))
            throw new CompactorException(CompactorStatus.CompilationFailed, $"{variant.Source} has no entry point '{variant.Entry}'.");
        return new SimtKernel(variant, ((nint*)entry)[0], (long)((ulong*)entry)[1], Limits);
    }

    public override GpuStream CreateStream() => new SimtStream(this);

    public override nint Allocate(long bytes, GpuStream stream)
    {
        RefuseInCapture("cuMemAlloc");
        nint address = SimtApi.Allocate(bytes);
        lock (Lock)
            _allocated.Add(address);
        return address;
    }

    public override void Free(nint address, GpuStream stream)
    {
        RefuseInCapture("cuMemFree");
        lock (Lock)
            if (!_allocated.Remove(address))
                throw new InvalidOperationException($"0x{address:x} is not allocated; it was freed before, or never came from this driver.");
        ((SimtStream)stream).Enqueue(() => SimtApi.Free(address));
    }

    public override nint AllocateHost(long bytes)
    {
        RefuseInCapture("cuMemAllocHost");
        nint address = (nint)NativeMemory.AlignedAlloc((nuint)bytes, 256);
        NativeMemory.Fill((void*)address, (nuint)bytes, 0xff);
        lock (Lock)
            _pinned.Add(address);
        return address;
    }

    public override void FreeHost(nint address)
    {
        RefuseInCapture("cuMemFreeHost");
        lock (Lock)
            if (!_pinned.Remove(address))
                throw new InvalidOperationException($"0x{address:x} is not page-locked memory of this driver.");
        NativeMemory.AlignedFree((void*)address);
    }

    public override void CopyToDevice(nint source, nint destination, long bytes, GpuStream stream)
    {
        RefuseInCapture("cuMemcpyHtoD");
        ((SimtStream)stream).Enqueue(() => SimtApi.Upload(destination, source, bytes));
    }

    public override void CopyToHost(nint source, nint destination, long bytes, GpuStream stream)
    {
        RefuseInCapture("cuMemcpyDtoH");
        ((SimtStream)stream).Enqueue(() => SimtApi.Download(destination, source, bytes));
    }

    public override void Fill(nint address, byte value, long bytes, GpuStream stream) => ((SimtStream)stream).Enqueue(() => SimtApi.Fill(address, value, bytes));

    /// <summary>Fills the memory with 0xFF bytes, and the slices alone may be touched.</summary>
    public override void Carve(nint address, long bytes, WorkspaceLayout layout, GpuStream stream) => ((SimtStream)stream).Enqueue(() =>
    {
        SimtApi.Protect(address, bytes, usable: false);
        SimtApi.Fill(address, 0xff, bytes);
        foreach (var (start, sliceBytes) in layout.Slices)
            SimtApi.Protect(address + (nint)start, (sliceBytes + 15) / 16 * 16, usable: true);
    });

    public override void Launch(GpuKernel kernel, LaunchShape shape, void* parameters, int parameterBytes, GpuStream stream)
    {
        var simt = (SimtKernel)kernel;
        if (parameterBytes != simt.ParameterBytes)
            throw new InvalidOperationException($"{kernel.Variant} takes {simt.ParameterBytes} bytes of parameters; the launch gives {parameterBytes}.");
        if (shape.SharedBytes > Limits.SharedBytesPerBlock)
            throw new InvalidOperationException($"Launching {kernel.Variant}, {shape}: a block has at most {Limits.SharedBytesPerBlock} bytes of shared memory.");
        byte[] copy = new ReadOnlySpan<byte>(parameters, parameterBytes).ToArray();
        ((SimtStream)stream).Enqueue(() =>
        {
            byte[] name = System.Text.Encoding.UTF8.GetBytes(kernel.Variant + "\0");
            fixed (byte* namePointer = name, copyPointer = copy)
                SimtApi.Launch(new SimtLaunch
                {
                    Entry = simt.Entry,
                    Name = namePointer,
                    Parameters = copyPointer,
                    ScheduleSeed = _launches++,
                    ArithmeticSeed = arithmeticSeed,
                    GridX = (uint)shape.GridX,
                    GridY = (uint)shape.GridY,
                    GridZ = (uint)shape.GridZ,
                    BlockX = (uint)shape.Threads,
                    BlockY = 1,
                    BlockZ = 1,
                    SharedBytes = (uint)shape.SharedBytes,
                    PreemptEvery = (uint)PreemptEvery,
                    CheckRaces = ChecksRaces ? 1u : 0u,
                });
        });
    }

    public override BackendEvent Record(GpuStream stream)
    {
        var recorded = new SimtEvent(this, (SimtStream)stream);
        ((SimtStream)stream).Enqueue(recorded.Pass);
        return recorded;
    }

    public override void Wait(GpuStream stream, BackendEvent recorded)
    {
        var (waiting, reached) = ((SimtStream)stream, (SimtEvent)recorded);
        if (waiting.Capture is not null && reached.Capture != waiting.Capture)
            throw new InvalidOperationException("A captured stream waits for an event that is not captured with it.");
        if (reached.Capture is { } capture)
        {
            waiting.Capture = capture;
            capture.Join(waiting, reached.Stream, reached.Position);
        }
        waiting.Enqueue(reached.Reach);
    }

    public override void Dispose()
    {
        foreach (nint address in _allocated)
            SimtApi.Free(address);
        foreach (nint address in _pinned)
            NativeMemory.AlignedFree((void*)address);
        _allocated.Clear();
        _pinned.Clear();
    }

    /// <summary>Does queued work; after a fault nothing is done any more, as on a device.</summary>
    internal void Run(Action work)
    {
        if (_failure is not null)
            return;
        try
        {
            work();
        }
        catch (CompactorException e)
        {
            _failure = e;
        }
    }

    /// <summary>Throws what queued work failed with.</summary>
    internal void ThrowIfFailed()
    {
        if (_failure is { } failure)
            throw new CompactorException(failure.Status, failure.Message, failure);
    }

    /// <summary>How much of its queue a stream does when work is queued: nothing, one piece or all.</summary>
    internal int Hurry() => _random.Next(4) switch { 0 => 1, 1 => int.MaxValue, _ => 0 };

    private sealed class SimtKernel(KernelVariant variant, nint entry, long parameterBytes, GpuLimits limits) : GpuKernel(variant)
    {
        public nint Entry => entry;

        public long ParameterBytes => parameterBytes;

        /// <summary>0: the emulator has none to count.</summary>
        public override int Registers => 0;

        public override int BlocksPerMultiprocessor(int threads, int sharedBytes) =>
            Math.Min(ThreadsPerMultiprocessor / threads, limits.SharedBytesPerMultiprocessor / (sharedBytes + ReservedSharedBytes));
    }
}
