using System.Runtime.CompilerServices;
using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Abi;

/// <summary>
/// The memory that one call was given. Every pointer is checked here: null, alignment, size, and that nothing the call writes overlaps anything else it was given.
/// </summary>
internal sealed unsafe class Arguments
{
    private const int LargestStruct = 4096;

    private readonly List<(string Name, nuint Start, nuint End, bool Written)> _regions = [];

    /// <summary>Reads a struct of this version, an earlier one (fields it lacks are 0), or a later one that uses none of its new fields.</summary>
    public static T Read<T>(string name, T* pointer) where T : unmanaged, IGrowing
    {
        int size = CheckStruct(name, pointer), known = Math.Min(size, sizeof(T));
        int unknown = new ReadOnlySpan<byte>((byte*)pointer + known, size - known).IndexOfAnyExcept((byte)0);
        if (unknown >= 0)
            throw new AbiException(Status.Unsupported,
                $"{name}.struct_size is {size}, of which this library (ABI version {Exports.AbiVersion}) knows {sizeof(T)}, and byte {known + unknown} is not 0. Leave fields it does not know 0, or use a later library.");
        T value = default;
        System.Buffer.MemoryCopy(pointer, &value, sizeof(T), known);
        return value;
    }

    /// <summary>Reads an array of structs, which lie as far apart as the first says it is large.</summary>
    public static T[] ReadAll<T>(string name, T* pointer, int count) where T : unmanaged, IGrowing
    {
        if (count < 0)
            throw AbiException.Argument($"There are {count} {name}; a count is 0 or more.");
        RequirePointer(name, pointer, count, AlignmentOf<T>());
        var values = new T[count];
        for (int i = 0, size = 0; i < count; i++)
        {
            var at = (T*)((byte*)pointer + (long)i * size);
            int own = CheckStruct($"{name}[{i}]", at);
            if (i > 0 && own != size)
                throw AbiException.Argument($"{name}[{i}].struct_size is {own} and {name}[0].struct_size is {size}; structs of an array have one size.");
            size = own;
            values[i] = Read($"{name}[{i}]", at);
        }
        return values;
    }

    /// <summary>Checks a struct's address and its size, which is the result.</summary>
    public static int CheckStruct<T>(string name, T* pointer) where T : unmanaged, IGrowing
    {
        RequirePointer(name, pointer, 1, AlignmentOf<T>());
        uint size = *(uint*)pointer;
        if (size < T.FirstSize || size > LargestStruct || size % AlignmentOf<T>() != 0)
            throw AbiException.Argument($"{name}.struct_size is {size}; it is {sizeof(T)} in this library (ABI version {Exports.AbiVersion}), and never below {T.FirstSize}. Set it to sizeof of the struct.");
        return (int)size;
    }

    /// <summary>Fills a struct that was checked, as far as it goes; fields of a later version become 0.</summary>
    public static void Fill<T>(T* pointer, T value) where T : unmanaged, IGrowing
    {
        uint size = *(uint*)pointer;
        new Span<byte>(pointer, (int)size).Clear();
        System.Buffer.MemoryCopy(&value, pointer, size, Math.Min(size, sizeof(T)));
        *(uint*)pointer = size;
    }

    /// <summary>Checks where a single result goes.</summary>
    public static void CheckResult<T>(string name, T* pointer) where T : unmanaged => RequirePointer(name, pointer, 1, sizeof(T));

    /// <summary>Copies an array of the host's.</summary>
    public static T[] Copy<T>(string name, T* pointer, long count, long expected) where T : unmanaged
    {
        RequireCount(name, count, expected);
        return Span(name, pointer, count).ToArray();
    }

    /// <summary>An array of the host's, where it lies.</summary>
    public static ReadOnlySpan<T> Span<T>(string name, T* pointer, long count) where T : unmanaged
    {
        if (count > Array.MaxLength)
            throw new AbiException(Status.Unsupported, $"{name} has {count} elements; at most {Array.MaxLength} can be taken.");
        RequirePointer(name, pointer, count, sizeof(T));
        return new ReadOnlySpan<T>(pointer, (int)count);
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
