using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>
/// Compiled kernels in folders: one that is written, and any number that come with an application. Entries appear whole, by renaming, so that any number of processes may
/// share a folder. An entry or folder that cannot be used costs a message and a compilation, nothing else.
/// </summary>
internal sealed class KernelCache
{
    private readonly string? _folder;
    private readonly IReadOnlyList<string> _shipped;
    private readonly Action<string> _announce;
    private int _refused;

    /// <param name="folder">The folder that is written, made on demand; null for none.</param>
    /// <param name="shipped">Folders that are only read; those that do not exist are passed over.</param>
    /// <param name="announce">Receives a sentence for everything that cannot be used.</param>
    public KernelCache(string? folder, IReadOnlyList<string> shipped, Action<string> announce) => (_folder, _shipped, _announce) = (folder, shipped, announce);

    /// <summary>The folder of this user: <c>COMPACTOR_CACHE</c>, or <c>compactor/kernels</c> in the system's place for caches; null where there is none.</summary>
    public static string? DefaultFolder(Func<string, string?> variable)
    {
        if (variable("COMPACTOR_CACHE") is { Length: > 0 } given)
            return given;
        string? root = OperatingSystem.IsWindows() ? variable("LOCALAPPDATA")
            : variable("XDG_CACHE_HOME") is { Length: > 0 } xdg ? xdg
            : variable("HOME") is { Length: > 0 } home ? Path.Combine(home, ".cache") : null;
        return root is { Length: > 0 } ? Path.Combine(root, "compactor", "kernels") : null;
    }

    /// <summary>Code for one of several targets, the first that any folder holds.</summary>
    public KernelCode? Find(KernelVariant variant, params IEnumerable<CompileTarget> targets)
    {
        foreach (var target in targets)
        {
            string file = FileName(variant, target);
            foreach (string folder in _folder is null ? _shipped : [.. _shipped, _folder])
                if (Read(Path.Combine(folder, file)) is { } code)
                    return code;
        }
        return null;
    }

    /// <summary>Keeps code for other processes and later runs.</summary>
    public void Store(KernelVariant variant, KernelCode code)
    {
        if (_folder is null)
            return;
        try
        {
            Write(_folder, variant, code);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            if (Interlocked.Exchange(ref _refused, 1) == 0)
                _announce($"Compiled kernels cannot be kept in {_folder}: {exception.Message.TrimEnd('.')}. They are compiled again by every process; set COMPACTOR_CACHE to a folder that can be written.");
        }
    }

    /// <summary>Writes an entry of a folder, whole or not at all.</summary>
    /// <exception cref="IOException">It cannot be written.</exception>
    public static string Write(string folder, KernelVariant variant, KernelCode code)
    {
        Directory.CreateDirectory(folder);
        string path = Path.Combine(folder, FileName(variant, code.Target)), temporary = $"{path}.{Environment.ProcessId}.{Guid.NewGuid():N}.tmp";
        try
        {
            File.WriteAllBytes(temporary, code.Write());
            File.Move(temporary, path, overwrite: true);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            // The folder may be full or closed; what was begun must not stay, and may not have been begun.
            if (File.Exists(temporary))
                File.Delete(temporary);
            throw;
        }
        return path;
    }

    private static string FileName(KernelVariant variant, CompileTarget target) => $"{KernelCode.Key(variant, target)}.kernel";

    private KernelCode? Read(string path)
    {
        try
        {
            return File.Exists(path) ? KernelCode.Read(File.ReadAllBytes(path)) : null;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or InvalidDataException)
        {
            _announce($"The compiled kernel {path} cannot be used: {exception.Message.TrimEnd('.')}. It is compiled again.");
            return null;
        }
    }
}
