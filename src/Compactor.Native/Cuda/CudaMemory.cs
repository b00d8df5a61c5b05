namespace Compactor.Native.Cuda;

/// <summary>
/// Device and page-locked memory of a context. What is given back is kept for the next request of its size on the same stream, where order alone makes reuse safe: a steady
/// load makes no allocation calls, which some drivers synchronise on. Sizes are rounded up by at most an eighth.
/// </summary>
internal sealed unsafe class CudaMemory(CudaContext context) : IDisposable
{
    private const long SmallestBytes = 256, LargestKept = 256L << 20;
    private const nint Host = -1;

    private readonly Lock _lock = new();
    private readonly Dictionary<nint, (long Bytes, bool IsHost)> _sizes = [];
    private readonly Dictionary<(nint Stream, long Bytes), Stack<nint>> _idle = [];
    private readonly DriverApi _driver = context.Driver;

    public nint Allocate(long bytes, nint stream)
    {
        long size = Round(bytes);
        return Take(stream, size, out nint kept) ? kept : Keep(Acquire(size, stream), size, isHost: false);
    }

    public void Free(nint address, nint stream)
    {
        if (GiveBack(stream, address))
            return;
        using (context.Enter())
            _driver.Check(TryRelease(address, stream, isHost: false), "Giving back device memory");
    }

    public nint AllocateHost(long bytes)
    {
        long size = Round(bytes);
        if (Take(Host, size, out nint kept))
            return kept;
        nint address = 0;
        using (context.Enter())
            _driver.Check(_driver.MemAllocHost(&address, (nuint)size), $"Allocating {size} bytes of page-locked host memory");
        return Keep(address, size, isHost: true);
    }

    public void FreeHost(nint address)
    {
        if (GiveBack(Host, address))
            return;
        using (context.Enter())
            _driver.Check(_driver.MemFreeHost(address), "cuMemFreeHost");
    }

    /// <summary>Gives back everything, in use or not; the streams it was used on are done with it.</summary>
    /// <exception cref="CompactorException">The driver refused some of it; the rest is given back.</exception>
    public void Dispose()
    {
        lock (_lock)
            using (context.Enter())
            {
                int status = DriverApi.Success;
                foreach (var (address, (_, isHost)) in _sizes)
                    if (TryRelease(address, stream: 0, isHost) is var refused and not DriverApi.Success && status == DriverApi.Success)
                        status = refused;
                _sizes.Clear();
                _idle.Clear();
                _driver.Check(status, "Giving back memory");
            }
    }

    internal static long Round(long bytes)
    {
        long size = Math.Max(SmallestBytes, bytes);
        long step = Math.Max(SmallestBytes, (long)System.Numerics.BitOperations.RoundUpToPowerOf2((ulong)size) / 16);
        return (size + step - 1) / step * step;
    }

    private nint Acquire(long size, nint stream)
    {
        nint address = 0;
        using (context.Enter())
        {
            int status = TryAcquire(&address, size, stream);
            if (status == DriverApi.OutOfMemory)
            {
                _driver.Check(_driver.StreamSynchronize(stream), "Waiting for the stream (cuStreamSynchronize)");
                Trim();
                status = TryAcquire(&address, size, stream);
            }
            if (status != DriverApi.Success)
            {
                nuint free = 0, total = 0;
                string left = _driver.MemGetInfo(&free, &total) == DriverApi.Success ? $" {free} of {total} bytes are free." : "";
                throw _driver.Failure(status, $"Allocating {size} bytes on {context.Name}", $"{left} Work in smaller batches, or free memory.");
            }
        }
        return address;
    }

    private int TryAcquire(nint* address, long size, nint stream) =>
        context.HasMemoryPools ? _driver.MemAllocAsync(address, (nuint)size, stream) : _driver.MemAlloc(address, (nuint)size);

    private int TryRelease(nint address, nint stream, bool isHost) =>
        isHost ? _driver.MemFreeHost(address) : context.HasMemoryPools ? _driver.MemFreeAsync(address, stream) : _driver.MemFree(address);

    private nint Keep(nint address, long size, bool isHost)
    {
        lock (_lock)
            _sizes.Add(address, (size, isHost));
        return address;
    }

    private bool Take(nint stream, long size, out nint address)
    {
        lock (_lock)
        {
            address = 0;
            return _idle.TryGetValue((stream, size), out var stack) && stack.TryPop(out address);
        }
    }

    /// <summary>Whether the memory is kept; otherwise it is forgotten here and has to be released.</summary>
    private bool GiveBack(nint stream, nint address)
    {
        lock (_lock)
        {
            if (!_sizes.TryGetValue(address, out var kept))
                return true; // given back already, with everything else
            long size = kept.Bytes;
            if (size > LargestKept)
            {
                _sizes.Remove(address);
                return false;
            }
            if (!_idle.TryGetValue((stream, size), out var stack))
                _idle.Add((stream, size), stack = []);
            stack.Push(address);
            return true;
        }
    }

    private void Trim()
    {
        lock (_lock)
            using (context.Enter())
                foreach (var ((stream, _), stack) in _idle)
                    while (stack.TryPop(out nint address))
                    {
                        _sizes.Remove(address);
                        _driver.Check(TryRelease(address, stream: 0, stream == Host), "Giving back memory");
                    }
    }
}
