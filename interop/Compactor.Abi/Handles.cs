namespace Compactor.Abi;

/// <summary>What a handle is of; part of its value.</summary>
internal enum HandleKind
{
    Backend = 1, Plan, Cache, Sequence, Compaction, Tables,
}

/// <summary>
/// Objects the host holds, by integers of (kind, slot, generation): a handle that is dead, made up, or of another kind is told, and never an address. An object that a
/// call uses, or that another stands on, cannot be closed.
/// </summary>
internal static class Handles
{
    private const int SlotBits = 24, MaxSlots = 1 << SlotBits;

    private static readonly Lock Gate = new();
    private static readonly List<Entry> Entries = [];
    private static readonly Stack<int> FreeSlots = [];
    private static int s_retired;

    private sealed class Entry
    {
        public object? Value;
        public HandleKind Kind;
        public uint Generation;
        public int Users, Dependents;
        public bool Exclusive;
        public ulong[] Owners = [];
    }

    /// <summary>Number of objects alive.</summary>
    public static int Live
    {
        get
        {
            lock (Gate)
                return Entries.Count - FreeSlots.Count - s_retired;
        }
    }

    /// <summary>Makes a handle.</summary>
    /// <param name="kind">What it is of.</param>
    /// <param name="value">The object.</param>
    /// <param name="owners">What it stands on; in use by this call.</param>
    public static ulong Add(HandleKind kind, object value, params ulong[] owners)
    {
        lock (Gate)
        {
            if (FreeSlots.Count == 0)
            {
                if (Entries.Count == MaxSlots)
                    throw new AbiException(Status.OutOfMemory, $"{MaxSlots} handles are alive; close some.");
                FreeSlots.Push(Entries.Count);
                Entries.Add(new Entry());
            }
            int slot = FreeSlots.Pop();
            var entry = Entries[slot];
            (entry.Value, entry.Kind, entry.Owners) = (value, kind, owners);
            entry.Generation++;
            foreach (ulong owner in owners)
                Entries[SlotOf(owner)].Dependents++;
            return (ulong)kind << (32 + SlotBits) | (ulong)slot << 32 | entry.Generation;
        }
    }

    /// <summary>Makes a handle, or disposes of what it was to hold.</summary>
    /// <param name="kind">What it is of.</param>
    /// <param name="value">The object.</param>
    /// <param name="made">What the call has made for it.</param>
    /// <param name="owners">What it stands on; in use by this call.</param>
    public static ulong AddOrDispose(HandleKind kind, object value, IDisposable made, params ulong[] owners)
    {
        try
        {
            return Add(kind, value, owners);
        }
        catch
        {
            made.Dispose();
            throw;
        }
    }

    /// <summary>Uses an object for a call, beside other calls.</summary>
    public static Lease<T> Use<T>(ulong handle, HandleKind kind) where T : class => new(handle, (T)Enter(handle, kind, exclusive: false));

    /// <summary>Uses an object for a call, alone.</summary>
    public static Lease<T> Own<T>(ulong handle, HandleKind kind) where T : class => new(handle, (T)Enter(handle, kind, exclusive: true));

    /// <summary>Kills a handle, unless something uses it or stands on it, and then disposes of the object.</summary>
    public static void Close<T>(ulong handle, HandleKind kind, Action<T>? dispose = null) where T : class
    {
        T value;
        ulong[] owners;
        lock (Gate)
        {
            var entry = Find(handle, kind);
            if (entry.Dependents > 0)
                throw new AbiException(Status.InUse, $"{entry.Dependents} other handle{(entry.Dependents == 1 ? " stands" : "s stand")} on this {Name(kind)}; close {(entry.Dependents == 1 ? "it" : "them")} first.");
            RequireIdle(entry);
            (value, owners) = ((T)entry.Value!, entry.Owners);
            Remove(SlotOf(handle));
        }
        try
        {
            dispose?.Invoke(value);
        }
        finally
        {
            lock (Gate)
                foreach (ulong owner in owners)
                    Entries[SlotOf(owner)].Dependents--;
        }
    }

    /// <summary>Kills a handle whose object the calling call has alone, and has ended; there is nothing to leave afterwards.</summary>
    public static void Retire(ulong handle)
    {
        lock (Gate)
        {
            var entry = Entries[SlotOf(handle)];
            foreach (ulong owner in entry.Owners)
                Entries[SlotOf(owner)].Dependents--;
            (entry.Users, entry.Exclusive) = (0, false);
            Remove(SlotOf(handle));
        }
    }

    private static object Enter(ulong handle, HandleKind kind, bool exclusive)
    {
        lock (Gate)
        {
            var entry = Find(handle, kind);
            if (exclusive || entry.Exclusive)
                RequireIdle(entry);
            entry.Users++;
            entry.Exclusive = exclusive;
            return entry.Value!;
        }
    }

    private static void Leave(ulong handle)
    {
        lock (Gate)
        {
            var entry = Entries[SlotOf(handle)];
            entry.Users--;
            entry.Exclusive = false;
        }
    }

    private static Entry Find(ulong handle, HandleKind kind)
    {
        var given = (HandleKind)(handle >> (32 + SlotBits));
        int slot = SlotOf(handle);
        if (handle == 0)
            throw new AbiException(Status.InvalidHandle, $"The {Name(kind)} handle is 0.");
        if (!Enum.IsDefined(given) || slot >= Entries.Count)
            throw new AbiException(Status.InvalidHandle, $"0x{handle:x16} is not a handle of this library; a {Name(kind)} is wanted.");
        if (given != kind)
            throw new AbiException(Status.InvalidHandle, $"0x{handle:x16} is a {Name(given)}; a {Name(kind)} is wanted.");
        var entry = Entries[slot];
        if (entry.Value is null || entry.Kind != kind || entry.Generation != (uint)handle)
            throw new AbiException(Status.InvalidHandle, $"The {Name(kind)} 0x{handle:x16} was closed before, or never made.");
        return entry;
    }

    private static void RequireIdle(Entry entry)
    {
        if (entry.Users > 0)
            throw new AbiException(Status.InUse, $"Another call is using this {Name(entry.Kind)}; wait for it to return.");
    }

    private static void Remove(int slot)
    {
        (Entries[slot].Value, Entries[slot].Owners) = (null, []);
        // a generation that came again would bring dead handles back to life
        if (Entries[slot].Generation == uint.MaxValue)
            s_retired++;
        else
            FreeSlots.Push(slot);
    }

    private static int SlotOf(ulong handle) => (int)(handle >> 32) & (MaxSlots - 1);

    private static string Name(HandleKind kind) => kind.ToString().ToLowerInvariant();

    /// <summary>The use of an object by a call.</summary>
    public readonly struct Lease<T>(ulong handle, T value) : IDisposable where T : class
    {
        public T Value => value;

        public void Dispose() => Leave(handle);
    }
}
