using Compactor.Native.Paging;

namespace Compactor.Abi;

/// <summary>A cache the host made, and the backend it is in.</summary>
internal sealed record Cache(PagedCache Pages, Backend Backend, ulong BackendHandle);

/// <summary>A sequence the host made, and the cache it is in.</summary>
internal sealed record Sequence(CacheSequence Pages, Cache Cache, ulong CacheHandle);

/// <summary>Sequences of one cache that a call uses, each alone.</summary>
internal sealed unsafe class Batch : IDisposable
{
    private readonly List<Handles.Lease<Sequence>> _leases = [];

    /// <summary>Uses them all, or none.</summary>
    public Batch(ulong* handles, int count)
    {
        if (count < 1)
            throw AbiException.Argument($"There are {count} sequences; give one or more.");
        SequenceHandles = Arguments.Copy("sequences", handles, count, count);
        var seen = new HashSet<ulong>();
        try
        {
            foreach (ulong handle in SequenceHandles)
            {
                if (!seen.Add(handle))
                    throw AbiException.Argument($"Sequence 0x{handle:x16} is in the batch twice; give each once.");
                _leases.Add(Handles.Own<Sequence>(handle, HandleKind.Sequence));
                if (_leases[^1].Value.Cache != _leases[0].Value.Cache)
                    throw AbiException.Argument("The sequences are of different caches; call for those of each cache by themselves.");
            }
        }
        catch
        {
            Dispose();
            throw;
        }
        Sequences = _leases.ConvertAll(lease => lease.Value.Pages);
    }

    public ulong[] SequenceHandles { get; }

    public IReadOnlyList<CacheSequence> Sequences { get; }

    public Cache Cache => _leases[0].Value.Cache;

    public Backend Backend => Cache.Backend;

    public void Dispose()
    {
        foreach (var lease in _leases)
            lease.Dispose();
        _leases.Clear();
    }
}
