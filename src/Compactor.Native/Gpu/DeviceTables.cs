namespace Compactor.Native.Gpu;

/// <summary>Small integer tables in one piece of device memory: written on the host, uploaded once.</summary>
internal sealed class DeviceTables
{
    private readonly List<int> _content = [];
    private BackendBuffer<int>? _memory;

    /// <summary>Adds a table.</summary>
    /// <returns>What <see cref="Address"/> takes.</returns>
    public int Add(ReadOnlySpan<int> table)
    {
        // Doubles may follow, which lie on 8 bytes.
        if (_content.Count % 2 != 0)
            _content.Add(0);
        int at = _content.Count;
        _content.AddRange(table);
        return at;
    }

    /// <summary>Adds a table of doubles.</summary>
    public int Add(ReadOnlySpan<double> table) => Add(System.Runtime.InteropServices.MemoryMarshal.Cast<double, int>(table));

    /// <summary>Uploads what was added; nothing may be added afterwards.</summary>
    public void Upload(KvBackend backend)
    {
        _memory = backend.Allocate<int>(_content.Count);
        backend.Upload<int>(_content.ToArray(), _memory.View);
    }

    public ulong Address(int table) => (ulong)_memory!.View.Address + sizeof(int) * (ulong)table;

    public void Free() => _memory?.Dispose();
}
