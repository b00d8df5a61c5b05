using System.Runtime.CompilerServices;
using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Abi;

/// <summary>
/// The memory that one call was given. Every pointer is checked here: null, alignment, size, and that nothing the call writes overlaps anything else it was given.
/// </summary>
internal sealed unsafe class Arguments
{
    private readonly List<(string Name, nuint Start, nuint End, bool Written)> _regions = [];

    /// <summary>Reads a struct that begins with its size.</summary>
    public static T Read<T>(string name, T* pointer) where T : unmanaged
    {
        CheckStruct(name, pointer);
        return *pointer;
    }

    /// <summary>Reads an array of structs, each of which begins with its size.</summary>
    public static T[] ReadAll<T>(string name, T* pointer, int count) where T : unmanaged
    {
        if (count < 0)
            throw AbiException.Argument($"There are {count} {name}; a count is 0 or more.");
        RequirePointer(name, pointer, count, AlignmentOf<T>());
        var values = new T[count];
        for (int i = 0; i < count; i++)
            values[i] = Read($"{name}[{i}]", pointer + i);
        return values;
    }

    /// <summary>Checks a struct that is to be filled, before there is anything to fill it with.</summary>
    public static void CheckStruct<T>(string name, T* pointer) where T : unmanaged
    {
        RequirePointer(name, pointer, 1, AlignmentOf<T>());
        uint size = *(uint*)pointer;
        if (size != sizeof(T))
            throw AbiException.Argument($"{name}.struct_size is {size}; this library (ABI version {Exports.AbiVersion}) knows {sizeof(T)}. Set it to sizeof of the struct.");
    }

    /// <summary>Checks where a single result goes.</summary>
    public static void CheckResult<T>(string name, T* pointer) where T : unmanaged => RequirePointer(name, pointer, 1, sizeof(T));

    /// <summary>Copies an array of the host's.</summary>
    public static T[] Copy<T>(string name, T* pointer, long count, long expected) where T : unmanaged
    {
        RequireCount(name, count, expected);
        if (count > Array.MaxLength)
            throw new AbiException(Status.Unsupported, $"{name} has {count} elements; at most {Array.MaxLength} can be taken.");
        RequirePointer(name, pointer, count, sizeof(T));
        return new ReadOnlySpan<T>(pointer, (int)count).ToArray();
    }

    /// <summary>Memory the call reads.</summary>
    public BufferView<T> Input<T>(string name, T* pointer, long count, long expected) where T : unmanaged => Buffer(name, pointer, count, expected, written: false);

    /// <summary>Memory the call writes.</summary>
    public BufferView<T> Output<T>(string name, T* pointer, long count, long expected) where T : unmanaged => Buffer(name, pointer, count, expected, written: true);

    /// <summary>Workspace: at least so many bytes.</summary>
    public BufferView<byte> Workspace(void* pointer, ulong bytes, long needed)
    {
        if (bytes < (ulong)needed)
            throw AbiException.Argument($"The workspace has {bytes} bytes; the plan takes {needed}.");
        RequirePointer("workspace", pointer, needed, LayerMemory.Alignment);
        Region("workspace", pointer, (UInt128)needed, written: true);
        return new BufferView<byte>(needed == 0 ? 0 : (nint)pointer, needed);
    }

    /// <summary>Output of a size in bytes.</summary>
    public BufferView<byte> OutputBytes(string name, void* pointer, ulong bytes, long expected, int alignment)
    {
        if (bytes != (ulong)expected)
            throw AbiException.Argument($"{name} has {bytes} bytes; it takes {expected}.");
        RequirePointer(name, pointer, expected, alignment);
        Region(name, pointer, (UInt128)expected, written: true);
        return new BufferView<byte>((nint)pointer, expected);
    }

    /// <summary>Notes memory that the call uses, and refuses what overlaps.</summary>
    /// <param name="name">Name in messages.</param>
    /// <param name="pointer">Its start.</param>
    /// <param name="bytes">Bytes from its first element to its last, gaps between rows included.</param>
    /// <param name="written">Whether the call writes it.</param>
    /// <param name="mayCross">Memory whose rows may lie in its gaps.</param>
    public void Region(string name, void* pointer, UInt128 bytes, bool written, string? mayCross = null)
    {
        if (bytes == 0)
            return;
        if ((UInt128)(nuint)pointer + bytes > nuint.MaxValue)
            throw AbiException.Argument($"{name} of {bytes} bytes reaches beyond the end of memory.");
        nuint start = (nuint)pointer, end = start + (nuint)bytes;
        foreach (var other in _regions)
            if ((written || other.Written) && other.Name != mayCross && start < other.End && other.Start < end)
                throw AbiException.Argument($"{name} overlaps {other.Name}; what a call writes must be apart from all else it is given.");
        _regions.Add((name, start, end, written));
    }

    /// <summary>Refuses null where there is something, and addresses off their boundary.</summary>
    public static void RequirePointer(string name, void* pointer, long count, int alignment)
    {
        if (pointer is null && count > 0)
            throw AbiException.Argument($"{name} is NULL.");
        if ((nuint)pointer % (nuint)alignment != 0)
            throw AbiException.Argument($"{name} is at 0x{(nuint)pointer:x}, which is not on a boundary of {alignment} bytes.");
    }

    private BufferView<T> Buffer<T>(string name, T* pointer, long count, long expected, bool written) where T : unmanaged
    {
        RequireCount(name, count, expected);
        RequirePointer(name, pointer, count, sizeof(T));
        Region(name, pointer, (UInt128)count * (uint)sizeof(T), written);
        return new BufferView<T>((nint)pointer, count);
    }

    private static void RequireCount(string name, long count, long expected)
    {
        if (count != expected || count < 0)
            throw AbiException.Argument($"{name} has {count} elements; it takes {expected}.");
    }

    /// <summary>Structs of this interface hold 8-byte fields, or are made of 4-byte ones.</summary>
    private static int AlignmentOf<T>() where T : unmanaged => Unsafe.SizeOf<Aligned<T>>() - sizeof(T);

    private readonly record struct Aligned<T>(byte First, T Value) where T : unmanaged;
}
