namespace Compactor.Native.Gpu;

/// <summary>Copies from pageable host memory: through page-locked pieces, each of which is used again once its copy is done, so that the caller never waits for the device.</summary>
internal sealed unsafe class Uploads(GpuDriver driver, GpuStream stream) : IDisposable
{
    private const long LargestPiece = 4 << 20;

    private readonly Lock _lock = new();
    private readonly Queue<(nint Address, BackendEvent Copied)> _inFlight = [];

    /// <summary>Queues a copy; the source has been read when this returns.</summary>
    public void Copy(nint source, nint destination, long bytes)
    {
        for (long at = 0; at < bytes; at += LargestPiece)
        {
            long piece = Math.Min(LargestPiece, bytes - at);
            Reclaim();
            nint pinned = driver.AllocateHost(piece);
            Buffer.MemoryCopy((void*)(source + (nint)at), (void*)pinned, piece, piece);
            driver.CopyToDevice(pinned, destination + (nint)at, piece, stream);
            var copied = driver.Record(stream);
            lock (_lock)
                _inFlight.Enqueue((pinned, copied));
        }
    }

    public void Dispose()
    {
        while (_inFlight.TryDequeue(out var piece))
            Return(piece);
    }

    private void Reclaim()
    {
        while (true)
        {
            (nint, BackendEvent) piece;
            lock (_lock)
            {
                if (!_inFlight.TryPeek(out piece) || !piece.Item2.HasPassed)
                    return;
                _inFlight.Dequeue();
            }
            Return(piece);
        }
    }

    private void Return((nint Address, BackendEvent Copied) piece)
    {
        piece.Copied.Dispose();
        driver.FreeHost(piece.Address);
    }
}
