using System.Collections.Concurrent;
using System.Runtime.CompilerServices;

namespace Compactor.Native.Gpu;

/// <summary>
/// Device copies of host objects: made at the first use of an object and kept as long as it lives. When it is collected, its copy is handed to the backend's thread, which frees
/// it in the order of its stream, when it next makes a copy.
/// </summary>
/// <param name="make">Makes the copy.</param>
internal sealed class Kept<TKey, TCopy>(Func<TKey, TCopy> make) : IDisposable where TKey : class where TCopy : class, IDisposable
{
    private readonly ConcurrentQueue<TCopy> _abandoned = [];
    private readonly ConditionalWeakTable<TKey, Owner> _copies = [];

    public TCopy Of(TKey key)
    {
        if (_copies.TryGetValue(key, out var known))
            return known.Copy;
        Sweep();
        return _copies.GetValue(key, k => new Owner(_abandoned, make(k))).Copy;
    }

    /// <summary>Frees every copy; none may be used afterwards.</summary>
    public void Dispose()
    {
        foreach (var (_, owner) in _copies)
            owner.Release();
        _copies.Clear();
        Sweep();
    }

    private void Sweep()
    {
        while (_abandoned.TryDequeue(out var copy))
            copy.Dispose();
    }

    private sealed class Owner(ConcurrentQueue<TCopy> abandoned, TCopy copy)
    {
        ~Owner() => abandoned.Enqueue(copy);

        public TCopy Copy => copy;

        public void Release()
        {
            GC.SuppressFinalize(this);
            copy.Dispose();
        }
    }
}
