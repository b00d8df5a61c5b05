using System.Runtime.InteropServices;

namespace Compactor.Native.Io;

/// <summary>Tells files from what renaming a file over would destroy.</summary>
internal static unsafe partial class SpecialFile
{
    private const int CurrentFolder = -100, StructBytes = 256, ModeOffset = 28;
    private const uint WantType = 1;
    private const ushort TypeMask = 0xF000, Regular = 0x8000;

    /// <summary>Whether a folder, pipe, socket or device is there, or a link to one. Where the system is not Linux, only folders are recognised.</summary>
    public static bool Exists(string path)
    {
        if (!OperatingSystem.IsLinux())
            return Directory.Exists(path);
        byte* status = stackalloc byte[StructBytes];
        return Statx(CurrentFolder, path, 0, WantType, status) == 0 && (*(ushort*)(status + ModeOffset) & TypeMask) != Regular;
    }

    // The layout of its struct is the same on every architecture, which that of stat is not.
    [LibraryImport("libc", EntryPoint = "statx", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Statx(int folder, string path, int flags, uint mask, byte* status);
}
