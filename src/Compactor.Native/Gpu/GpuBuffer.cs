namespace Compactor.Native.Gpu;

/// <summary>Device memory, given back in the order of the stream it is used on.</summary>
internal sealed class GpuBuffer<T> : BackendBuffer<T> where T : unmanaged
{
    private readonly GpuDriver _driver;
    private readonly GpuStream _stream;
    private readonly long _length;
    private nint _address;

    public unsafe GpuBuffer(GpuDriver driver, GpuStream stream, long length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        (_driver, _stream, _length) = (driver, stream, length);
        _address = driver.Allocate(Math.Max(1, checked(length * sizeof(T))), stream);
    }

    public override BufferView<T> View => _address != 0 ? new(_address, _length) : throw new ObjectDisposedException(nameof(GpuBuffer<>));

    public override void Dispose()
    {
        if (Interlocked.Exchange(ref _address, 0) is not 0 and var address)
            _driver.Free(address, _stream);
    }
}

/// <summary>Page-locked host memory.</summary>
internal sealed class PinnedBuffer<T> : BackendBuffer<T> where T : unmanaged
{
    private readonly GpuDriver _driver;
    private readonly long _length;
    private nint _address;

    public unsafe PinnedBuffer(GpuDriver driver, long length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        (_driver, _length) = (driver, length);
        _address = driver.AllocateHost(Math.Max(1, checked(length * sizeof(T))));
    }

    public override BufferView<T> View => _address != 0 ? new(_address, _length) : throw new ObjectDisposedException(nameof(PinnedBuffer<>));

    public override void Dispose()
    {
        if (Interlocked.Exchange(ref _address, 0) is not 0 and var address)
            _driver.FreeHost(address);
    }
}
