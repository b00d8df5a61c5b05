using System.Runtime.InteropServices;

namespace Compactor.Native.Io;

/// <summary>What a path leads to.</summary>
internal enum FileKind
{
    /// <summary>Nothing, or nothing that may be looked at.</summary>
    Absent,
    Regular,
    Folder,

    /// <summary>A pipe, socket or device.</summary>
    Special,
}

/// <summary>Tells what is at a path without opening it, which for a pipe would wait for its other end.</summary>
internal static unsafe partial class FileKinds
{
    private const int CurrentFolder = -100, StructBytes = 256, ModeOffset = 28;
    private const uint WantType = 1;
    private const ushort TypeMask = 0xF000, RegularType = 0x8000, FolderType = 0x4000;

    /// <summary>What is there, links followed. Where the system is not Linux, pipes and devices are not told from files.</summary>
    public static FileKind Of(string path)
    {
        if (!OperatingSystem.IsLinux())
            return Directory.Exists(path) ? FileKind.Folder : File.Exists(path) ? FileKind.Regular : FileKind.Absent;
        byte* status = stackalloc byte[StructBytes];
        if (Statx(CurrentFolder, path, 0, WantType, status) != 0)
            return FileKind.Absent;
        return (*(ushort*)(status + ModeOffset) & TypeMask) switch
        {
            RegularType => FileKind.Regular,
            FolderType => FileKind.Folder,
            _ => FileKind.Special,
        };
    }

    // The layout of its struct is the same on every architecture, which that of stat is not.
    [LibraryImport("libc", EntryPoint = "statx", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Statx(int folder, string path, int flags, uint mask, byte* status);
}
