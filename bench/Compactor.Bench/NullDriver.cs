using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Gpu;

namespace Compactor.Bench;

/// <summary>A device that does nothing at once: what is left is the host's side. Device addresses stand for no memory, page-locked memory is the host's.</summary>
internal unsafe class NullDriver : GpuDriver
{
    private nint _next = 1 << 20;

    /// <summary>Kernels launched so far.</summary>
    public int Launches { get; private set; }

    public override string Description => "nothing";

    /// <summary>Those of an H200.</summary>
    public override GpuLimits Limits => new(90, 132, 232_448, 233_472);

    public override GpuKernel Load(KernelVariant variant) => new Kernel(variant);

    public override GpuStream CreateStream() => new Stream();

    public override nint Allocate(long bytes, GpuStream stream)
    {
        nint address = _next;
        _next += (nint)((bytes + 255) / 256 * 256);
        return address;
    }

    public override void Free(nint address, GpuStream stream) { }

    public override nint AllocateHost(long bytes) => (nint)NativeMemory.AllocZeroed((nuint)bytes);

    public override void FreeHost(nint address) => NativeMemory.Free((void*)address);

    public override void CopyToDevice(nint source, nint destination, long bytes, GpuStream stream) { }

    public override void CopyToHost(nint source, nint destination, long bytes, GpuStream stream) { }

    public override void Fill(nint address, byte value, long bytes, GpuStream stream) { }

    public override void Launch(GpuKernel kernel, LaunchShape shape, void* parameters, int parameterBytes, GpuStream stream) => Launches++;

    public override BackendEvent Record(GpuStream stream) => new Passed();

    public override void Wait(GpuStream stream, BackendEvent recorded) { }

    public override void Dispose() { }

    private sealed class Kernel(KernelVariant variant) : GpuKernel(variant)
    {
        public override int Registers => 128;

        public override int BlocksPerMultiprocessor(int threads, int sharedBytes) => 1;
    }

    private sealed class Stream : GpuStream
    {
        public override void Synchronize() { }

        public override void Dispose() { }
    }

    private sealed class Passed : BackendEvent
    {
        public override bool HasPassed => true;

        public override void Wait() { }

        public override void Dispose() { }
    }
}
