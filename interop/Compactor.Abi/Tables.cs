using Compactor.Native;
using Compactor.Native.Paging;

namespace Compactor.Abi;

/// <summary>Block tables of a batch in one layer, as they were when it was made: in host memory and in the backend's.</summary>
internal sealed class Tables : IDisposable
{
    private readonly BackendBuffer<int> _host, _device;
    private readonly int[] _starts = new int[6];

    public Tables(KvBackend backend, IReadOnlyList<CacheSequence> sequences, int layer)
    {
        var (tables, stride, lengths) = CacheExport.Padded(sequences, layer);
        var (indptr, indices, lastPageLengths) = CacheExport.FlashInfer(sequences, layer);
        (Rows, RowStride, Pages) = (lengths.Length, stride, indices.Length);
        int[][] parts = [tables, lengths, indptr, indices, lastPageLengths];
        for (int i = 0; i < parts.Length; i++)
            _starts[i + 1] = _starts[i] + parts[i].Length;
        _host = backend.AllocateHost<int>(_starts[^1]);
        _device = backend.Allocate<int>(_starts[^1]);
        for (int i = 0; i < parts.Length; i++)
            parts[i].CopyTo(_host.View.AsSpan()[_starts[i]..]);
        backend.Upload(_host.View.AsSpan(), _device.View);
    }

    public int Rows { get; }

    public int RowStride { get; }

    public int Pages { get; }

    /// <summary>Tables as attention reads them.</summary>
    public PagedTables View => new(Part(_device, 0), RowStride, Part(_device, 1));

    public unsafe TablesInfo Describe() => new()
    {
        Rows = Rows,
        RowStride = RowStride,
        Pages = Pages,
        HostTables = Address(_host, 0),
        HostLengths = Address(_host, 1),
        HostIndptr = Address(_host, 2),
        HostIndices = Address(_host, 3),
        HostLastPageLengths = Address(_host, 4),
        DeviceTables = Address(_device, 0),
        DeviceLengths = Address(_device, 1),
        DeviceIndptr = Address(_device, 2),
        DeviceIndices = Address(_device, 3),
        DeviceLastPageLengths = Address(_device, 4),
    };

    public void Dispose()
    {
        _host.Dispose();
        _device.Dispose();
    }

    private BufferView<int> Part(BackendBuffer<int> memory, int part) => memory.View.Slice(_starts[part], _starts[part + 1] - _starts[part]);

    private unsafe int* Address(BackendBuffer<int> memory, int part) => (int*)Part(memory, part).Address;
}
