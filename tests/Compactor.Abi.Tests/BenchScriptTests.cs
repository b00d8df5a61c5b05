using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The Python tests of tests/bench: what compares results, what makes tables of them, and the workflows that call both.</summary>
public class BenchScriptTests
{
    private static readonly string s_folder = Path.Combine(NativeBuild.Root, "tests", "bench");

    public static TheoryData<string> Files { get; } = [.. Directory.GetFiles(s_folder, "test_*.py").Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal)];

    [Theory]
    [InlineData("usage: bash bench/startup.sh", "--help")]
    [InlineData("usage: bash bench/startup.sh", "a.json", "b.json")]
    [InlineData("/dev/null/result.json cannot be written", "/dev/null/result.json")]
    public void Start_up_names_bad_input_before_it_measures(string said, params string[] arguments) =>
        Assert.Contains(said, Command.Run("bash", [Path.Combine(NativeBuild.Root, "bench", "startup.sh"), .. arguments], exitCode: 2));

    /// <summary>Where building fails, a result file that was there stays, and one that was not is not left behind.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Start_up_that_fails_leaves_files_as_they_were(bool existed)
    {
        string folder = Directory.CreateTempSubdirectory("compactor-startup-").FullName, result = Path.Combine(folder, "result.json"), dotnet = Path.Combine(folder, "dotnet");
        try
        {
            if (existed)
                File.WriteAllText(result, "");
            File.WriteAllText(dotnet, "#!/bin/sh\nexit 7\n");
            Command.Run("chmod", ["+x", dotnet]);
            Command.Run("bash", [Path.Combine(NativeBuild.Root, "bench", "startup.sh"), result], exitCode: 7, variables: ("PATH", $"{folder}:{Environment.GetEnvironmentVariable("PATH")}"));
            Assert.Equal(existed, File.Exists(result));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Theory]
    [MemberData(nameof(Files))]
    public void Hold(string file)
    {
        string said = Command.Run(Command.Python("numpy, yaml"), ["-m", "unittest", "--verbose", file], s_folder, variables: ("PYTHONDONTWRITEBYTECODE", "1"));
        Assert.Matches(@"Ran [1-9]\d* tests? in [\s\S]*OK\n$", said);
    }
}
