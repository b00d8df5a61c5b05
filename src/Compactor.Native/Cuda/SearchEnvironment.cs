namespace Compactor.Native.Cuda;

/// <summary>What a <see cref="LibrarySearch"/> depends on besides the file system, so that it can be given and not only inherited.</summary>
public sealed record SearchEnvironment
{
    /// <summary>The environment of this process.</summary>
    public static SearchEnvironment Current => new()
    {
        Variable = Environment.GetEnvironmentVariable,
        Home = Environment.GetFolderPath(Environment.SpecialFolder.UserProfile),
    };

    /// <summary>Value of an environment variable, or null.</summary>
    public required Func<string, string?> Variable { get; init; }

    /// <summary>Home folder of the user; empty for none.</summary>
    public string Home { get; init; } = "";

    /// <summary>Path of NVRTC that overrides every other place; null to ask <c>COMPACTOR_NVRTC</c>.</summary>
    public string? NvrtcPath { get; init; }

    /// <summary>Path of the CUDA driver that overrides every other place; null for the system's.</summary>
    public string? DriverPath { get; init; }

    /// <summary>Whether names are given to the system's loader, which looks in its own folders.</summary>
    public bool UseLoader { get; init; } = true;

    /// <summary>Toolkit folders; a folder name may hold <c>*</c>.</summary>
    public IReadOnlyList<string> ToolkitFolders { get; init; } = OperatingSystem.IsWindows()
        ? [@"C:\Program Files\NVIDIA GPU Computing Toolkit\CUDA\v*\bin", @"C:\Program Files\NVIDIA GPU Computing Toolkit\CUDA\v*\bin\x64"]
        :
        [
            "/usr/local/cuda*/lib64",
            "/usr/local/cuda*/targets/x86_64-linux/lib",
            "/opt/cuda/lib64",
            "/opt/cuda/targets/x86_64-linux/lib",
            "/usr/lib/x86_64-linux-gnu",
        ];

    /// <summary>Package folders of system-wide Pythons; a folder name may hold <c>*</c>.</summary>
    public IReadOnlyList<string> PackageFolders { get; init; } = OperatingSystem.IsWindows()
        ? []
        : ["/usr/lib/python3/dist-packages", "/usr/local/lib/python3*/dist-packages", "/usr/local/lib/python3*/site-packages"];
}
