using Compactor.Native.Cuda;

namespace Compactor.Gpu.Tests;

/// <summary>The compilers that tests/nvrtc.sh unpacks.</summary>
internal static class Nvrtc
{
    private static readonly Lazy<NvrtcApi> s_newer = new(() => new NvrtcApi(PathOf("12.4"))), s_older = new(() => new NvrtcApi(PathOf("11.8")));

    public static NvrtcApi Newer => s_newer.Value;

    public static NvrtcApi Older => s_older.Value;

    public static NvrtcApi Of(string version) => version == "12.4" ? Newer : Older;

    /// <summary>Path of NVRTC 12.4 or 11.8.</summary>
    public static string PathOf(string version)
    {
        string folder = Path.Combine(Repository, "tests", ".nvrtc", version);
        return Directory.Exists(folder) ? Path.Combine(folder, version == "12.4" ? "libnvrtc.so.12" : "libnvrtc.so.11.2")
            : throw new InvalidOperationException($"{folder} does not exist; run tests/nvrtc.sh, as tests/run.sh does.");
    }

    /// <summary>The repository's root: the folder above these tests that holds the solution.</summary>
    public static string Repository { get; } = FindRepository();

    private static string FindRepository()
    {
        for (var folder = new DirectoryInfo(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
            if (File.Exists(Path.Combine(folder.FullName, "Compactor.Native.sln")))
                return folder.FullName;
        throw new InvalidOperationException($"No folder above {AppContext.BaseDirectory} holds Compactor.Native.sln.");
    }
}
