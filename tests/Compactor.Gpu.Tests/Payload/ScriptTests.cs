using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace Compactor.Gpu.Tests.Payload;

/// <summary>The scripts of tests/gpu, in a folder packed as theirs is, with small scripts in place of its programs: what is refused, what is told, and by which exit code.</summary>
public sealed class ScriptTests : IDisposable
{
    private const string Passed = "echo 'Test run summary: Passed!'; echo '  total: 3'; echo '  failed: 0'; echo '  succeeded: 2'; echo '  skipped: 1'";

    private static readonly string s_scripts = Path.Combine(Nvrtc.Repository, "tests", "gpu");

    private readonly string _folder = Directory.CreateTempSubdirectory("compactor-payload-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("run.sh")]
    [InlineData("pack.sh")]
    public void A_script_is_whole(string script) => Assert.Equal((0, "", ""), Bash(["-n", Path.Combine(s_scripts, script)]));

    [Fact]
    public void An_archive_that_is_too_large_is_refused()
    {
        string archive = Path.Combine(_folder, "archive");
        foreach (var (bytes, code) in ((long, int)[])[(40_000_000, 0), (40_000_001, 1)])
        {
            using (var file = File.Create(archive))
                file.SetLength(bytes);
            var (exit, output, error) = Bash([Path.Combine(s_scripts, "pack.sh"), "--check", archive]);
            Assert.Equal(code, exit);
            Assert.Contains($"{bytes} bytes", output + error);
        }
        Assert.Equal(2, Bash([Path.Combine(s_scripts, "pack.sh"), "--check", Path.Combine(_folder, "none")]).Code);
        Assert.Contains("unknown option '--chek'", Bash([Path.Combine(s_scripts, "pack.sh"), "--chek"]).Error);
    }

    [Fact]
    public void What_is_unknown_or_missing_is_refused_before_anything_runs()
    {
        Pack(gpu: "null", tests: Passed, bench: "true");
        Refused("unknown section 'test'; the sections are doctor tests sanitizer benchmark more", "test");
        Refused("--out takes a folder", "--out");
        File.Delete(Path.Combine(_folder, "bench", "Compactor.Gpu.Bench"));
        Refused("bench/Compactor.Gpu.Bench is not there");

        void Refused(string message, params string[] arguments)
        {
            var (code, _, error) = Run(arguments);
            Assert.Equal(2, code);
            Assert.Contains(message, error);
            Assert.False(File.Exists(Path.Combine(_folder, "out", "compactor-gpu.json")));
        }
    }

    [Fact]
    public void Without_a_gpu_one_line_says_so_and_nothing_is_run()
    {
        Pack(gpu: "null", tests: Passed, bench: "true");
        var (code, output, error) = Run();
        Assert.Equal((3, ""), (code, output));
        Assert.Equal("run.sh: no GPU that can be used, so nothing was run: No CUDA driver was found. Looked at: libcuda.so.1.\n", error);
        var root = Json();
        Assert.Equal(JsonValueKind.Null, root.GetProperty("gpu").ValueKind);
        Assert.Equal("doctor failed", Assert.Single(Results(root)));
    }

    [Fact]
    public void What_held_is_told_with_counts_and_times()
    {
        Pack(gpu: "\"Some \\\"GPU\\\"\"", tests: "[ \"$COMPACTOR_TEST_DEVICE\" = cuda ] || exit 9; " + Passed, bench: "while [ $# -gt 0 ]; do [ \"$1\" = --json ] && echo '{ \"operations\": [7] }' > \"$2\"; shift; done");
        var (code, output, _) = Run("benchmark", "tests");
        Assert.True(code == 0, output);
        var root = Json();
        Assert.Equal("Some \"GPU\"", root.GetProperty("gpu").GetString());
        Assert.Equal("12.4", root.GetProperty("nvrtc").GetString());
        Assert.Equal(["tests passed", "benchmark passed"], Results(root));
        Assert.Equal("3 total,0 failed,2 succeeded,1 skipped", root.GetProperty("sections")[0].GetProperty("text").GetString());
        Assert.Equal(7, root.GetProperty("benchmark").GetProperty("operations")[0].GetInt32());
        Assert.Contains("Test run summary", File.ReadAllText(Path.Combine(_folder, "out", "compactor-gpu.log")));
    }

    [Fact]
    public void What_did_not_hold_is_told_by_the_exit_code()
    {
        Pack(gpu: "\"GPU\"", tests: "echo '  total: 3'; echo '  failed: 3'; exit 2", bench: "exit 124");
        Assert.Equal(1, Run("doctor", "tests", "benchmark").Code);
        Assert.Equal(["doctor passed", "tests failed", "benchmark incomplete"], Results(Json()));
        Assert.Equal(JsonValueKind.Null, Json().GetProperty("benchmark").ValueKind);
    }

    [Fact]
    public void Without_a_compiler_the_tests_fail_and_the_benchmark_takes_shipped_kernels()
    {
        Pack(gpu: "\"GPU\"", tests: Passed, bench: "[[ \"$*\" == *\"--kernels \"*tests/compactor-kernels* ]]", nvrtc: "null");
        Assert.Equal(1, Run("tests", "benchmark").Code);
        Assert.Equal(["tests failed", "benchmark passed"], Results(Json()));
        Assert.Contains("no NVRTC was found", Json().GetProperty("sections")[0].GetProperty("text").GetString());
    }

    [Fact]
    public void What_the_sanitizer_found_is_told_with_how_many_tests_ran()
    {
        Pack(gpu: "\"GPU\"", tests: Passed, bench: "true");
        Program("bin/compute-sanitizer", """
            tool=$2; shift 4; "$@"
            [ "$tool" = racecheck ] || { echo "========= ERROR SUMMARY: 0 errors"; exit 0; }
            echo "========= RACECHECK SUMMARY: 8 hazards displayed (8 errors, 0 warnings)"; exit 86
            """);
        string bin = Path.Combine(_folder, "bin");
        Assert.Equal(1, Bash(["-c", $"PATH={bin}:$PATH exec bash \"$@\"", "bash", Path.Combine(_folder, "run.sh"), "--out", Path.Combine(_folder, "out"), "sanitizer"]).Code);
        Assert.Equal(["sanitizer memcheck passed", "sanitizer racecheck failed", "sanitizer initcheck passed", "sanitizer synccheck passed"], Results(Json()));
        Assert.Equal($"RACECHECK SUMMARY: 8 hazards displayed (8 errors, 0 warnings), tests of scores, selection and attention under {bin}/compute-sanitizer: 3 total,0 failed,2 succeeded,1 skipped",
            Json().GetProperty("sections")[1].GetProperty("text").GetString());
    }

    private static IEnumerable<string> Results(JsonElement root) =>
        root.GetProperty("sections").EnumerateArray().Select(s => $"{s.GetProperty("section").GetString()} {s.GetProperty("result").GetString()}");

    private void Pack(string gpu, string tests, string bench, string nvrtc = "\"12.4\"")
    {
        File.Copy(Path.Combine(s_scripts, "run.sh"), Path.Combine(_folder, "run.sh"));
        File.WriteAllText(Path.Combine(_folder, "version"), "abc\n");
        // As `compactor doctor --json` prints it.
        Program("tool/compactor", $$"""
            cat <<'EOF'
            {
              "backends": [
                "cpu"
              ],
              "gpu": {{gpu}},
              "gpu_reason": "No CUDA driver was found. Looked at: libcuda.so.1.",
              "cuda_driver": {
                "found": null,
                "version": null
              },
              "nvrtc": {
                "found": null,
                "version": {{nvrtc}}
              }
            }
            EOF
            """);
        Program("tests/Compactor.Gpu.Tests", tests);
        Program("bench/Compactor.Gpu.Bench", bench);
    }

    private void Program(string name, string body)
    {
        string path = Path.Combine(_folder, name);
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        File.WriteAllText(path, $"#!/usr/bin/env bash\n{body}\n");
        if (!OperatingSystem.IsWindows())
            File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
    }

    private (int Code, string Output, string Error) Run(params string[] arguments) => Bash([Path.Combine(_folder, "run.sh"), .. OutFolder(arguments), .. arguments]);

    private string[] OutFolder(string[] arguments) => arguments.Contains("--out") ? [] : ["--out", Path.Combine(_folder, "out")];

    private JsonElement Json() => JsonDocument.Parse(File.ReadAllText(Path.Combine(_folder, "out", "compactor-gpu.json"))).RootElement;

    private static (int Code, string Output, string Error) Bash(string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo("bash", arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        var error = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output, error.Result);
    }
}
