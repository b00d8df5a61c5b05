using Compactor.Abi.Tests;
using Xunit;

[assembly: AssemblyFixture(typeof(NativeBuild))]

namespace Compactor.Abi.Tests;

/// <summary>The CMake project, configured and built once for all tests: the shared library by the .NET SDK, and the C programs against it.</summary>
public sealed class NativeBuild
{
    public NativeBuild()
    {
        Command.Run("cmake", ["-S", Root, "-B", Folder]);
        Command.Run("cmake", ["--build", Folder, "--parallel", "2"]);
    }

    /// <summary>The repository.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>The build tree; kept between runs.</summary>
    public static string Folder { get; } = Path.Combine(AppContext.BaseDirectory, "cmake");

    /// <summary>The shared library.</summary>
    public static string Library { get; } = Path.Combine(Folder, "lib", "libcompactor_native.so");

    public static string Header { get; } = Path.Combine(Root, "interop", "include", "compactor.h");

    private static string FindRoot()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(folder.FullName, "Compactor.Native.sln")))
            folder = folder.Parent ?? throw new InvalidOperationException($"{AppContext.BaseDirectory} is not inside the repository.");
        return folder.FullName;
    }
}
