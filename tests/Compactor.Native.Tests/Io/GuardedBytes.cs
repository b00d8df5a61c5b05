using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Compactor.Native.Tests.Io;

/// <summary>
/// Read-only memory between two pages that nobody may touch, with bytes that end where the one begins or begin where the other ends:
/// reading a byte before or after them, at that side, ends the process.
/// </summary>
internal sealed unsafe partial class GuardedBytes : IDisposable
{
    private const int None = 0, Read = 1, Write = 2, Private = 2, Anonymous = 0x20;

    private readonly byte* _mapping;
    private readonly nint _page = Environment.SystemPageSize, _length;

    public GuardedBytes(ReadOnlySpan<byte> bytes, bool atEnd)
    {
        nint inner = Math.Max(1, (bytes.Length + _page - 1) / _page) * _page;
        _length = inner + 2 * _page;
        _mapping = (byte*)MemoryMap(0, _length, None, Private | Anonymous, -1, 0);
        if ((nint)_mapping == -1)
            throw new Win32Exception();
        byte* first = _mapping + _page;
        Protect(first, inner, Read | Write);
        Start = atEnd ? first + inner - bytes.Length : first;
        bytes.CopyTo(new Span<byte>(Start, bytes.Length));
        Protect(first, inner, Read);
    }

    public byte* Start { get; }

    /// <summary>Whether a byte may be read: asks the system to, which then refuses instead of ending the process.</summary>
    public static bool CanRead(byte* address)
    {
        int* ends = stackalloc int[2];
        if (Pipe(ends) != 0)
            throw new Win32Exception();
        bool written = WriteTo(ends[1], address, 1) == 1;
        Close(ends[0]);
        Close(ends[1]);
        return written;
    }

    public void Dispose()
    {
        if (MemoryUnmap(_mapping, _length) != 0)
            throw new Win32Exception();
    }

    private static void Protect(byte* address, nint length, int protection)
    {
        if (MemoryProtect(address, length, protection) != 0)
            throw new Win32Exception();
    }

    [LibraryImport("libc", EntryPoint = "mmap", SetLastError = true)]
    private static partial nint MemoryMap(nint address, nint length, int protection, int flags, int file, nint offset);

    [LibraryImport("libc", EntryPoint = "mprotect", SetLastError = true)]
    private static partial int MemoryProtect(byte* address, nint length, int protection);

    [LibraryImport("libc", EntryPoint = "munmap", SetLastError = true)]
    private static partial int MemoryUnmap(byte* address, nint length);

    [LibraryImport("libc", EntryPoint = "pipe", SetLastError = true)]
    private static partial int Pipe(int* ends);

    [LibraryImport("libc", EntryPoint = "write")]
    private static partial nint WriteTo(int file, byte* bytes, nint count);

    [LibraryImport("libc", EntryPoint = "close")]
    private static partial int Close(int file);
}
