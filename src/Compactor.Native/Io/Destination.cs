using System.Runtime.InteropServices;

namespace Compactor.Native.Io;

/// <summary>The file that writing to a path would change: what symbolic links lead to.</summary>
internal static unsafe partial class Destination
{
    private const int MaxLinks = 40;

    /// <summary>The file's own path, free of links; it need not exist yet, its folder must.</summary>
    /// <exception cref="CompactorException">What is there is no regular file, and renaming a file over it would destroy it; or links lead in a circle.</exception>
    /// <exception cref="IOException">The folder does not exist or cannot be read.</exception>
    public static string Of(string path)
    {
        if (FileKinds.Of(path) is FileKind.Folder or FileKind.Special)
            throw Refused("is not a regular file but a folder, pipe or device, which cannot be replaced");
        string at = path;
        for (int links = 0; links <= MaxLinks; links++)
        {
            at = Path.Combine(RealFolder(at), Path.GetFileName(at));
            if (new FileInfo(at).LinkTarget is not { } target)
                return at;
            at = Path.Combine(Path.GetDirectoryName(at)!, target);
        }
        throw Refused("cannot be written: its links lead in a circle");

        CompactorException Refused(string problem) => new(CompactorStatus.InvalidFile, $"'{path}' {problem}; name a file.");
    }

    /// <summary>The folder a path is in, as the system follows links: ".." goes up from where a link leads, which <see cref="Path.GetFullPath(string)"/> does not do.</summary>
    private static string RealFolder(string path)
    {
        string folder = Path.GetDirectoryName(path) is { Length: > 0 } named ? named : ".";
        if (OperatingSystem.IsWindows())
            return Path.GetFullPath(folder);
        byte* real = RealPath(folder, null);
        if (real == null)
            throw new IOException($"'{folder}': {Marshal.GetLastPInvokeErrorMessage()}");
        string result = Marshal.PtrToStringUTF8((nint)real)!;
        NativeMemory.Free(real);
        return result;
    }

    [LibraryImport("libc", EntryPoint = "realpath", StringMarshalling = StringMarshalling.Utf8, SetLastError = true)]
    private static partial byte* RealPath(string path, byte* resolved);
}
