namespace Compactor.Native.Gpu;

/// <summary>
/// Scratch memory that operations take one after the other on one stream. It grows by doubling, when an operation is prepared or first met, and what it has outgrown stays
/// until it is disposed of: work in flight and graphs captured earlier may still use it.
/// </summary>
/// <param name="driver">Where the memory is.</param>
/// <param name="stream">The one stream it is used on.</param>
/// <param name="zeroed">Whether operations find it zero and leave it zero; otherwise its content is undefined.</param>
internal sealed class Workspace(GpuDriver driver, GpuStream stream, bool zeroed) : IDisposable
{
    private readonly Stack<nint> _pieces = [];
    private long _bytes;

    /// <summary>Held while the launches of an operation that takes the memory are queued.</summary>
    public Lock Turn { get; } = new();

    /// <summary>Makes room for a layout.</summary>
    public void Reserve(WorkspaceLayout layout)
    {
        lock (Turn)
        {
            if (_pieces.Count > 0 && layout.Bytes <= _bytes)
                return;
            _bytes = Math.Max(layout.Bytes, 2 * _bytes);
            _pieces.Push(driver.Allocate(_bytes, stream));
            if (zeroed)
                driver.Fill(_pieces.Peek(), 0, _bytes, stream);
        }
    }

    /// <summary>The memory, for an operation that touches the slices of a layout and nothing between them; its launches are queued while <see cref="Turn"/> is held.</summary>
    public ulong Take(WorkspaceLayout layout)
    {
        Reserve(layout);
        if (!zeroed)
            driver.Carve(_pieces.Peek(), _bytes, layout, stream);
        return (ulong)_pieces.Peek();
    }

    public void Dispose()
    {
        while (_pieces.TryPop(out nint piece))
            driver.Free(piece, stream);
    }
}

/// <summary>Slices of a workspace: each starts on a boundary of 256 bytes, with 256 bytes or more between it and the next.</summary>
internal sealed class WorkspaceLayout
{
    private const long Boundary = 256;

    private readonly (long Start, long Bytes)[] _slices;

    /// <param name="slices">Bytes of each slice.</param>
    public WorkspaceLayout(params ReadOnlySpan<long> slices)
    {
        _slices = new (long, long)[slices.Length];
        for (int i = 0; i < slices.Length; i++)
        {
            _slices[i] = (Bytes, slices[i]);
            Bytes += (slices[i] + 2 * Boundary - 1) / Boundary * Boundary;
        }
    }

    /// <summary>Bytes of all slices and what lies between them.</summary>
    public long Bytes { get; }

    public IReadOnlyList<(long Start, long Bytes)> Slices => _slices;

    /// <summary>Where a slice starts.</summary>
    public ulong this[int slice] => (ulong)_slices[slice].Start;
}
