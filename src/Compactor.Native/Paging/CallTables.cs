using System.Buffers;
using System.Runtime.InteropServices;

namespace Compactor.Native.Paging;

/// <summary>The tables of one call on a backend, made of the tables of sequences in one layer, in one piece of backend memory that is uploaded at once.</summary>
internal sealed class CallTables : IDisposable
{
    private readonly BackendBuffer<int> _memory;
    private long _next;

    /// <summary>Starts a piece of memory; its parts must be taken in the order they were written.</summary>
    private CallTables(KvBackend backend, ReadOnlySpan<int> content)
    {
        _memory = backend.Allocate<int>(content.Length);
        backend.Upload(content, _memory.View);
    }

    private BufferView<int> Part(long length)
    {
        _next += length;
        return _memory.View.Slice(_next - length, length);
    }

    public void Dispose() => _memory.Dispose();

    /// <summary>Where new tokens go: the blocks of each head that have room, then what is reserved for the sequence.</summary>
    /// <param name="backend">Backend.</param>
    /// <param name="tables">The layer's table of each sequence.</param>
    /// <param name="blockSize">Slots of a block.</param>
    /// <param name="replace">Whether the new tokens take the place of the old, so that no block that is held has room for them.</param>
    /// <param name="newTokens">How many each head gets at the most; limits how many blocks are listed.</param>
    /// <param name="reserved">Blocks to deal.</param>
    /// <param name="reservedStarts"><c>[B]</c> where each sequence's start.</param>
    /// <param name="targets">The tables.</param>
    public static CallTables Targets(KvBackend backend, IReadOnlyList<LayerTable> tables, int blockSize, bool replace, ReadOnlySpan<int> newTokens,
        ReadOnlySpan<int> reserved, ReadOnlySpan<int> reservedStarts, out PagedTargets targets)
    {
        int kvHeads = tables.Count == 0 ? 1 : tables[0].Rows.Length, rows = tables.Count * kvHeads, stride = 0;
        var listed = new int[rows];
        var starts = new int[rows];
        for (int row = 0; row < rows && !replace; row++)
        {
            var table = tables[row / kvHeads];
            int length = table.Lengths[row % kvHeads], held = table.Rows[row % kvHeads].Count;
            long end = Math.Min(held, ((long)length + newTokens[row / kvHeads] + blockSize - 1) / blockSize);
            (starts[row], listed[row]) = (length % blockSize, (int)Math.Max(0, end - length / blockSize));
            stride = Math.Max(stride, listed[row]);
        }
        int[] content = ArrayPool<int>.Shared.Rent(rows * (stride + 2) + reserved.Length + reservedStarts.Length);
        for (int row = 0; row < rows; row++)
            if (listed[row] > 0)
            {
                var table = tables[row / kvHeads];
                table.Rows[row % kvHeads].CopyTo(table.Lengths[row % kvHeads] / blockSize, content, row * stride, listed[row]);
            }
        int at = rows * stride;
        Append(listed);
        Append(starts);
        Append(reserved);
        Append(reservedStarts);
        var call = new CallTables(backend, content.AsSpan(0, at));
        ArrayPool<int>.Shared.Return(content);
        targets = new PagedTargets(kvHeads, call.Part(rows * stride), stride, call.Part(rows), call.Part(rows), call.Part(reserved.Length), call.Part(reservedStarts.Length));
        return call;

        void Append(ReadOnlySpan<int> values)
        {
            values.CopyTo(content.AsSpan(at));
            at += values.Length;
        }
    }

    /// <summary>Tables and lengths as they are, padded to the longest row.</summary>
    public static CallTables Held(KvBackend backend, IReadOnlyList<LayerTable> tables, int blockSize, out PagedTables held)
    {
        int kvHeads = tables.Count == 0 ? 1 : tables[0].Rows.Length, rows = tables.Count * kvHeads, stride = 0;
        foreach (var table in tables)
            foreach (int length in table.Lengths)
                stride = Math.Max(stride, (length + blockSize - 1) / blockSize);
        int[] content = ArrayPool<int>.Shared.Rent(rows * (stride + 1));
        for (int row = 0; row < rows; row++)
        {
            var table = tables[row / kvHeads];
            int length = table.Lengths[row % kvHeads], blocks = (length + blockSize - 1) / blockSize;
            CollectionsMarshal.AsSpan(table.Rows[row % kvHeads])[..blocks].CopyTo(content.AsSpan(row * stride));
            content[rows * stride + row] = length;
        }
        var call = new CallTables(backend, content.AsSpan(0, rows * (stride + 1)));
        ArrayPool<int>.Shared.Return(content);
        held = new PagedTables(call.Part(rows * stride), stride, call.Part(rows));
        return call;
    }

    /// <summary>Lists of any meaning.</summary>
    public static CallTables Of(KvBackend backend, ReadOnlySpan<int> first, ReadOnlySpan<int> second, out BufferView<int> firstView, out BufferView<int> secondView) =>
        Of(backend, first, second, [], out firstView, out secondView, out _);

    /// <summary>Lists of any meaning.</summary>
    public static CallTables Of(KvBackend backend, ReadOnlySpan<int> first, ReadOnlySpan<int> second, ReadOnlySpan<int> third,
        out BufferView<int> firstView, out BufferView<int> secondView, out BufferView<int> thirdView)
    {
        var call = new CallTables(backend, [.. first, .. second, .. third]);
        (firstView, secondView, thirdView) = (call.Part(first.Length), call.Part(second.Length), call.Part(third.Length));
        return call;
    }
}
