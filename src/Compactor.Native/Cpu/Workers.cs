using System.Runtime.InteropServices;

namespace Compactor.Native.Cpu;

/// <summary>
/// Runs independent work items on a fixed number of threads. Scratch and workspace are kept between calls: fresh memory costs a page fault every
/// 4 KB. Which thread takes an item never changes a result: items write disjoint outputs.
/// </summary>
internal sealed class Workers(int threads) : IDisposable
{
    private const int GuardBytes = 256;
    private const byte Unwritten = 0xFF;   // NaN in every element type

    private readonly Lock _lock = new();
    private readonly List<AlignedMemory> _idle = [];
    private long _allocated;

    public int Threads => threads;

    /// <summary>Most bytes of scratch and workspace held at once so far.</summary>
    public long PeakBytes { get; private set; }

    /// <summary>Whether memory, and what lies behind it, is handed out as NaN, and writing there ends the call with an exception: what tests run with.</summary>
    public bool ChecksMemory { get; set; }

    /// <summary>Allocates workspace that all items of a stage share.</summary>
    public Workspace Rent(long bytes)
    {
        var workspace = new Workspace(this, Take(bytes + (ChecksMemory ? GuardBytes : 0)), bytes);
        workspace.Begin();
        if (ChecksMemory)
            workspace.Behind.Fill(Unwritten);
        return workspace;
    }

    /// <summary>Runs <paramref name="body"/> for every item from 0 to <paramref name="items"/> - 1.</summary>
    /// <param name="items">Number of items.</param>
    /// <param name="scratchBytes">Scratch each item may use.</param>
    /// <param name="body">Receives the item and the address of 64-byte-aligned scratch with unspecified content.</param>
    public void Run(int items, long scratchBytes, Action<int, nint> body)
    {
        if (threads == 1 || items <= 1)
        {
            using var scratch = Rent(scratchBytes);
            for (int i = 0; i < items; i++)
            {
                scratch.Begin();
                body(i, scratch.Address);
            }
            return;
        }
        Parallel.For(0, items, new ParallelOptions { MaxDegreeOfParallelism = threads },
            () => Rent(scratchBytes),
            (i, _, scratch) =>
            {
                scratch.Begin();
                body(i, scratch.Address);
                return scratch;
            },
            scratch => scratch.Dispose());
    }

    public void Dispose()
    {
        lock (_lock)
        {
            _idle.ForEach(memory => memory.Dispose());
            _idle.Clear();
        }
    }

    /// <summary>The smallest idle memory that is large enough; else the largest idle one is replaced.</summary>
    private AlignedMemory Take(long bytes)
    {
        lock (_lock)
        {
            var taken = _idle.Where(memory => memory.Bytes >= bytes).MinBy(memory => memory.Bytes) ?? _idle.MaxBy(memory => memory.Bytes);
            if (taken is not null)
                _idle.Remove(taken);
            if (taken?.Bytes >= bytes)
                return taken;
            _allocated += bytes - (taken?.Bytes ?? 0);
            PeakBytes = Math.Max(PeakBytes, _allocated);
            taken?.Dispose();
            return new AlignedMemory(bytes);
        }
    }

    private void Return(AlignedMemory memory)
    {
        lock (_lock)
            _idle.Add(memory);
    }

    internal readonly unsafe struct Workspace(Workers workers, AlignedMemory memory, long bytes) : IDisposable
    {
        public nint Address => memory.Address;

        public Span<byte> Behind => new((void*)(memory.Address + (nint)bytes), GuardBytes);

        public void Begin()
        {
            if (workers.ChecksMemory)
                NativeMemory.Fill((void*)memory.Address, (nuint)bytes, Unwritten);
        }

        public void Dispose()
        {
            bool whole = !workers.ChecksMemory || !Behind.ContainsAnyExcept(Unwritten);
            workers.Return(memory);
            if (!whole)
                throw new InvalidOperationException($"Something was written behind {bytes} bytes of scratch or workspace.");
        }
    }
}
