using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The C programs, as ctest runs them.</summary>
public class NativeProgramTests
{
    [Theory]
    [InlineData("sample")]
    [InlineData("stages")]
    [InlineData("misuse")]
    [InlineData("threads")]
    [InlineData("lifetime")]
    public void Program_passes_under_ctest(string name) =>
        Assert.Contains("100% tests passed, 0 tests failed out of 1", Command.Run("ctest", ["--test-dir", NativeBuild.Folder, "-R", $"^{name}$", "--output-on-failure"]));

    [Theory(Explicit = true)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Misuse_with_other_seeds(int seed) => Command.Run(Path.Combine(NativeBuild.Folder, "misuse"), ["400000", $"{seed}"], NativeBuild.Folder);
}
