using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The C programs, as ctest runs them.</summary>
public class NativeProgramTests
{
    [Theory]
    [InlineData("sample")]
    [InlineData("stages")]
    [InlineData("stages_without_variant")]
    [InlineData("misuse")]
    [InlineData("lifetime")]
    [InlineData("cuda")]
    public void Program_passes_under_ctest(string name) =>
        Assert.Contains("100% tests passed, 0 tests failed out of 1", Command.Run("ctest", ["--test-dir", NativeBuild.Folder, "-R", $"^{name}$", "--output-on-failure"]));

    [Fact]
    public void Threads_for_200_rounds() => Threads(200);

    [Fact(Explicit = true)]
    public void Threads_for_1000_rounds() => Threads(1000);

    [Fact]
    public void Cuda_opens_on_the_context_and_stream_it_is_given()
    {
        // the driver is one without a device; the compiler is real
        string nvrtc = Path.Combine(NativeBuild.Root, "tests", ".nvrtc", "12.4", "libnvrtc.so.12"), cache = Path.Combine(NativeBuild.Folder, "kernels");
        Assert.True(File.Exists(nvrtc), $"{nvrtc} does not exist; run tests/nvrtc.sh, as tests/run.sh does.");
        Command.Run(Path.Combine(NativeBuild.Folder, "cuda"), ["present"], NativeBuild.Folder, 0,
            ("LD_LIBRARY_PATH", Path.Combine(NativeBuild.Folder, "present")), ("COMPACTOR_NVRTC", nvrtc), ("COMPACTOR_CACHE", cache));

        // the same without a compiler, with the compiled kernels beside the library
        string beside = Path.Combine(Path.GetDirectoryName(NativeBuild.Library)!, "compactor-kernels");
        Directory.CreateDirectory(beside);
        try
        {
            foreach (string kernel in Directory.GetFiles(cache))
                File.Copy(kernel, Path.Combine(beside, Path.GetFileName(kernel)), overwrite: true);
            Command.Run(Path.Combine(NativeBuild.Folder, "cuda"), ["present"], NativeBuild.Folder, 0,
                ("LD_LIBRARY_PATH", Path.Combine(NativeBuild.Folder, "present")), ("COMPACTOR_NVRTC", "/nowhere/libnvrtc.so"), ("COMPACTOR_CACHE", Path.Combine(NativeBuild.Folder, "no-kernels")));
        }
        finally
        {
            Directory.Delete(beside, recursive: true);
        }
    }

    [Theory(Explicit = true)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Misuse_with_other_seeds(int seed) => Command.Run(Path.Combine(NativeBuild.Folder, "misuse"), ["400000", $"{seed}"], NativeBuild.Folder);

    /// <summary>Where other tests run beside it, what is slow is no deadlock before ten minutes are over.</summary>
    private static void Threads(int rounds) => Command.Run(Path.Combine(NativeBuild.Folder, "threads"), [$"{rounds}", "600"], NativeBuild.Folder);
}
