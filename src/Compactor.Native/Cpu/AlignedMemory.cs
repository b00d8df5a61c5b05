using System.Runtime.InteropServices;

namespace Compactor.Native.Cpu;

/// <summary>Host memory on a 64-byte boundary.</summary>
internal sealed unsafe class AlignedMemory : IDisposable
{
    private void* _address;

    public AlignedMemory(long bytes)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        Bytes = bytes;
        _address = NativeMemory.AlignedAlloc((nuint)Math.Max(64, bytes), 64);
    }

    ~AlignedMemory() => Free();

    public long Bytes { get; }

    public nint Address => _address != null ? (nint)_address : throw new ObjectDisposedException(nameof(AlignedMemory));

    public void Dispose()
    {
        Free();
        GC.SuppressFinalize(this);
    }

    private void Free()
    {
        NativeMemory.AlignedFree(_address);
        _address = null;
    }
}

internal sealed class HostBuffer<T>(long length) : BackendBuffer<T> where T : unmanaged
{
    private readonly AlignedMemory _memory = new(checked(length * System.Runtime.CompilerServices.Unsafe.SizeOf<T>()));

    public override BufferView<T> View => new(_memory.Address, length);

    public override void Dispose() => _memory.Dispose();
}
