using System.Runtime.InteropServices;

namespace Compactor.Native.Cuda;

/// <summary>
/// Where a CUDA library was looked for, in order, and what was found. Each candidate is loaded, asked for its version and let go;
/// CUDA is not initialised.
/// </summary>
public sealed unsafe class LibrarySearch
{
    private readonly Func<nint, (Version? Version, string? Reason)> _version;
    private readonly List<LibraryCandidate> _candidates = [];
    private readonly HashSet<string> _files = [];

    private LibrarySearch(string library, Func<nint, (Version?, string?)> version) => (Library, _version) = (library, version);

    /// <summary>What was looked for, for people.</summary>
    public string Library { get; }

    /// <summary>Every place looked at, in order of preference.</summary>
    public IReadOnlyList<LibraryCandidate> Candidates => _candidates;

    /// <summary>The first usable candidate; null when there is none, or when an explicit path was given and cannot be used.</summary>
    public LibraryCandidate? Found => Error is null ? _candidates.FirstOrDefault(c => c.Outcome == LibraryOutcome.Found) : null;

    /// <summary>What is wrong with an explicit path, or null.</summary>
    public string? Error { get; private set; }

    /// <summary>Looks for the CUDA driver: an explicit path, or <c>libcuda.so.1</c>, or <c>nvcuda.dll</c>.</summary>
    public static LibrarySearch Driver(SearchEnvironment environment)
    {
        var search = new LibrarySearch("CUDA driver", DriverVersion);
        if (environment.DriverPath is { } given)
        {
            search._candidates.Add(search.Load("explicit path", given));
            return search;
        }
        if (environment.UseLoader)
            foreach (string name in OperatingSystem.IsWindows() ? ["nvcuda.dll"] : (string[])["libcuda.so.1", "libcuda.so"])
                search.TryName(name);
        if (OperatingSystem.IsLinux())
            search.TryFolder("WSL", "/usr/lib/wsl/lib", "libcuda.so.1");
        return search;
    }

    /// <summary>
    /// Looks for NVRTC: an explicit path, the loader's default names, <c>CUDA_PATH</c> and <c>CUDA_HOME</c>, toolkit folders, wheels.
    /// An explicit path that cannot be used is an <see cref="Error"/>: the other places are listed, and none of them is chosen.
    /// </summary>
    public static LibrarySearch Nvrtc(SearchEnvironment environment)
    {
        var search = new LibrarySearch("NVRTC", NvrtcVersion);
        string? given = environment.NvrtcPath ?? NotEmpty(environment.Variable("COMPACTOR_NVRTC"));
        if (given is not null)
        {
            string source = environment.NvrtcPath is null ? "COMPACTOR_NVRTC" : "explicit path";
            var candidate = search.Load(source, given);
            if (candidate.Outcome != LibraryOutcome.Found)
                search.Error = $"{source} is '{given}', which {(candidate.Outcome == LibraryOutcome.NotPresent ? "does not exist" : $"cannot be used: {candidate.Reason}")}. " +
                    "Point it at an NVRTC library (libnvrtc.so.12, nvrtc64_120_0.dll), or unset it to have the usual places searched.";
            search._candidates.Add(candidate);
        }

        bool windows = OperatingSystem.IsWindows();
        string files = windows ? "nvrtc64_*.dll" : "libnvrtc.so*";
        if (environment.UseLoader)
            foreach (string name in windows
                ? ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
                : (string[])["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"])
                search.TryName(name);
        foreach (string variable in (string[])["CUDA_PATH", "CUDA_HOME"])
            if (NotEmpty(environment.Variable(variable)) is { } root)
                foreach (string folder in windows ? ["bin", Path.Combine("bin", "x64"), Path.Combine("lib", "x64")] : (string[])["lib64", "lib", "bin"])
                    search.TryFolder(variable, Path.Combine(root, folder), files);
        foreach (string folder in environment.ToolkitFolders)
            search.TryFolder("toolkit folder", folder, files);
        foreach (string folder in PackageFolders(environment).Distinct())
            search.TryFolder("wheel", Path.Combine(folder, "nvidia", "*", windows ? "bin" : "lib"), files);
        return search;
    }

    private static IEnumerable<string> PackageFolders(SearchEnvironment environment)
    {
        var roots = new List<string>();
        foreach (string variable in (string[])["VIRTUAL_ENV", "CONDA_PREFIX"])
            if (NotEmpty(environment.Variable(variable)) is { } root)
                roots.Add(root);
        foreach (string folder in (environment.Variable("PATH") ?? "").Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries))
        {
            if (OperatingSystem.IsWindows() && File.Exists(Path.Combine(folder, "python.exe")))
                roots.Add(folder);
            else if (!OperatingSystem.IsWindows() && File.Exists(Path.Combine(folder, "python3")) && Path.GetDirectoryName(folder) is { } prefix && prefix != "/usr" && prefix != "/")
                roots.Add(prefix);
        }
        if (environment.Home.Length > 0)
            roots.Add(Path.Combine(environment.Home, ".local"));
        foreach (string root in roots)
            yield return OperatingSystem.IsWindows() ? Path.Combine(root, "Lib", "site-packages") : Path.Combine(root, "lib", "python3*", "site-packages");
        foreach (string folder in environment.PackageFolders)
            yield return folder;
    }

    private void TryName(string name) => _candidates.Add(Load("loader", name));

    /// <summary>Tries the files of a folder whose path may hold wildcards; records the pattern when nothing matches.</summary>
    private void TryFolder(string source, string folder, string files)
    {
        bool any = false;
        foreach (string path in Expand(folder).SelectMany(f => Files(f, files)).Order(StringComparer.Ordinal))
        {
            any = true;
            // libnvrtc.so, libnvrtc.so.12 and libnvrtc.so.12.4.127 are one file and two links to it.
            if (_files.Add(new FileInfo(path).ResolveLinkTarget(returnFinalTarget: true)?.FullName ?? path))
                _candidates.Add(Load(source, path));
        }
        if (!any)
            _candidates.Add(new LibraryCandidate(source, Path.Combine(folder, files), LibraryOutcome.NotPresent));
    }

    private static IEnumerable<string> Expand(string pattern)
    {
        int star = pattern.IndexOf('*');
        if (star < 0)
            return [pattern];
        int start = pattern.LastIndexOf(Path.DirectorySeparatorChar, star), end = pattern.IndexOf(Path.DirectorySeparatorChar, star);
        end = end < 0 ? pattern.Length : end;
        return Entries(pattern[..start], pattern[(start + 1)..end], Directory.EnumerateDirectories)
            .SelectMany(folder => Expand(folder + pattern[end..]));
    }

    private static IEnumerable<string> Files(string folder, string pattern) =>
        Entries(folder, pattern, Directory.EnumerateFiles).Where(path => !path.Contains(".alt.", StringComparison.Ordinal));

    /// <summary>Folders that are absent or closed to this user hold nothing this user could load.</summary>
    private static string[] Entries(string folder, string pattern, Func<string, string, EnumerationOptions, IEnumerable<string>> enumerate) =>
        Directory.Exists(folder) ? [.. enumerate(folder, pattern, new EnumerationOptions { IgnoreInaccessible = true, MatchType = MatchType.Simple })] : [];

    private LibraryCandidate Load(string source, string place)
    {
        if (!NativeLibrary.TryLoad(place, out nint handle))
        {
            bool path = place.Contains('/') || place.Contains(Path.DirectorySeparatorChar);
            if (path && !File.Exists(place))
                return new LibraryCandidate(source, place, LibraryOutcome.NotPresent);
            string reason = LoaderMessage(place);
            return !path && (OperatingSystem.IsWindows() || reason.Contains($"{place}: cannot open shared object file", StringComparison.Ordinal))
                ? new LibraryCandidate(source, place, LibraryOutcome.NotPresent)
                : new LibraryCandidate(source, place, LibraryOutcome.Failed, Reason: reason);
        }
        try
        {
            var (version, reason) = _version(handle);
            return new LibraryCandidate(source, place, version is null ? LibraryOutcome.Failed : LibraryOutcome.Found, version, reason);
        }
        finally
        {
            NativeLibrary.Free(handle);
        }
    }

    /// <summary>The loader's own words, which only the throwing overload gives: the line that names the library.</summary>
    private static string LoaderMessage(string place)
    {
        try
        {
            NativeLibrary.Free(NativeLibrary.Load(place));
            return "it loads only at times; try again";
        }
        catch (Exception exception) when (exception is DllNotFoundException or BadImageFormatException)
        {
            string[] lines = exception.Message.Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
            return lines.FirstOrDefault(line => line.StartsWith(place, StringComparison.Ordinal)) ?? lines.LastOrDefault() ?? "no reason given";
        }
    }

    private static (Version?, string?) DriverVersion(nint handle)
    {
        if (!NativeLibrary.TryGetExport(handle, "cuDriverGetVersion", out nint function))
            return (null, "it exports no cuDriverGetVersion: not a CUDA driver");
        int version = 0;
        int status = ((delegate* unmanaged<int*, int>)function)(&version);
        return status == 0 ? (new Version(version / 1000, version % 1000 / 10), null) : (null, $"cuDriverGetVersion returned {status}");
    }

    private static (Version?, string?) NvrtcVersion(nint handle)
    {
        if (!NativeLibrary.TryGetExport(handle, "nvrtcVersion", out nint function))
            return (null, "it exports no nvrtcVersion: not NVRTC");
        int major = 0, minor = 0;
        int status = ((delegate* unmanaged<int*, int*, int>)function)(&major, &minor);
        return status == 0 ? (new Version(major, minor), null) : (null, $"nvrtcVersion returned {status}");
    }

    private static string? NotEmpty(string? value) => string.IsNullOrWhiteSpace(value) ? null : value;
}
