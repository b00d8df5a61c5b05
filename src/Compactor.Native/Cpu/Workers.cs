using System.Collections.Concurrent;

namespace Compactor.Native.Cpu;

/// <summary>
/// Runs independent work items on a fixed number of threads, each with scratch memory of its own that is kept between calls. Which thread
/// takes an item never changes a result: items write disjoint outputs.
/// </summary>
internal sealed class Workers(int threads) : IDisposable
{
    private readonly ConcurrentBag<AlignedMemory> _scratch = [];
    private long _allocated, _peak;

    public int Threads => threads;

    /// <summary>Most bytes of scratch and workspace held at once so far.</summary>
    public long PeakBytes => Volatile.Read(ref _peak);

    /// <summary>Allocates workspace that all items of a stage share.</summary>
    public Workspace Rent(long bytes) => new(this, bytes);

    /// <summary>Runs <paramref name="body"/> for every item from 0 to <paramref name="items"/> - 1.</summary>
    /// <param name="items">Number of items.</param>
    /// <param name="scratchBytes">Scratch each item may use.</param>
    /// <param name="body">Receives the item and the address of 64-byte-aligned scratch with unspecified content.</param>
    public void Run(int items, long scratchBytes, Action<int, nint> body)
    {
        if (threads == 1 || items <= 1)
        {
            var scratch = TakeScratch(scratchBytes);
            try
            {
                for (int i = 0; i < items; i++)
                    body(i, scratch.Address);
            }
            finally
            {
                _scratch.Add(scratch);
            }
            return;
        }
        try
        {
            Parallel.For(0, items, new ParallelOptions { MaxDegreeOfParallelism = threads },
                () => TakeScratch(scratchBytes),
                (i, _, scratch) =>
                {
                    body(i, scratch.Address);
                    return scratch;
                },
                _scratch.Add);
        }
        catch (AggregateException e) when (e.InnerExceptions[0] is CompactorException first)
        {
            throw first;
        }
    }

    public void Dispose()
    {
        while (_scratch.TryTake(out var scratch))
            scratch.Dispose();
    }

    private AlignedMemory TakeScratch(long bytes)
    {
        if (_scratch.TryTake(out var scratch))
        {
            if (scratch.Bytes >= bytes)
                return scratch;
            Free(scratch);
        }
        return New(bytes);
    }

    private AlignedMemory New(long bytes)
    {
        var memory = new AlignedMemory(bytes);
        long now = Interlocked.Add(ref _allocated, bytes), peak;
        while (now > (peak = Volatile.Read(ref _peak)))
            Interlocked.CompareExchange(ref _peak, now, peak);
        return memory;
    }

    private void Free(AlignedMemory memory)
    {
        Interlocked.Add(ref _allocated, -memory.Bytes);
        memory.Dispose();
    }

    internal readonly struct Workspace(Workers workers, long bytes) : IDisposable
    {
        private readonly AlignedMemory _memory = workers.New(bytes);

        public nint Address => _memory.Address;

        public void Dispose() => workers.Free(_memory);
    }
}
