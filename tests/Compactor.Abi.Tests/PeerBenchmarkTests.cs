using System.Text.Json;
using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The benchmark beside PyTorch and published packages, on the CPU: results agree, and its JSON holds what was measured.</summary>
public class PeerBenchmarkTests
{
    private static readonly string s_script = Path.Combine(NativeBuild.Root, "bench", "peers", "gpu.py");

    [Fact(Explicit = true)]
    public void The_library_and_PyTorch_agree_on_every_operation()
    {
        string file = Path.GetTempFileName();
        try
        {
            Command.Run(Command.Python("torch"), [s_script, "--library", NativeBuild.Library, "--device", "cpu", "--tokens", "512", "--commit", "abc1234", "--json", file],
                variables: ("PYTHONDONTWRITEBYTECODE", "1"));
            using var json = JsonDocument.Parse(File.ReadAllText(file));
            Assert.Equal("abc1234", json.RootElement.GetProperty("commit").GetString());
            Assert.Equal(JsonValueKind.Null, json.RootElement.GetProperty("compiler").ValueKind);
            Assert.Equal(0, json.RootElement.GetProperty("failures").GetArrayLength());
            Assert.Equal(0, json.RootElement.GetProperty("not_measured").GetArrayLength());
            var operations = json.RootElement.GetProperty("operations").EnumerateArray().ToList();
            Assert.True(operations.Count >= 7, $"{operations.Count} operations were measured");
            Assert.All(operations, operation =>
            {
                double[] ours = Samples(operation.GetProperty("ours_us"));
                Assert.True(ours.Min() > 0);
                var peers = operation.GetProperty("peers").EnumerateObject().Where(peer => peer.Name.StartsWith("PyTorch", StringComparison.Ordinal)).ToList();
                Assert.NotEmpty(peers);
                Assert.All(peers, peer =>
                {
                    Assert.InRange(peer.Value.GetProperty("error").GetDouble(), 0, peer.Value.GetProperty("tolerance").GetDouble());
                    var ratios = peer.Value.GetProperty("ratios").EnumerateArray().Select(ratio => ratio.GetDouble());
                    Assert.All(Samples(peer.Value.GetProperty("us")).Zip(ours, ratios), pair => Assert.Equal(1, pair.Third * pair.Second / pair.First, 1e-3));
                });
            });
        }
        finally
        {
            File.Delete(file);
        }

        // All repeats of one side, in the order they were measured, and their median among them.
        static double[] Samples(JsonElement times)
        {
            double[] samples = [.. times.GetProperty("samples").EnumerateArray().Select(sample => sample.GetDouble())];
            Assert.Equal(9, samples.Length);
            Assert.Equal(samples.Order().ElementAt(4), times.GetProperty("median").GetDouble());
            return samples;
        }
    }

    [Theory]
    [InlineData("there is no shared library at /none.so", "--library", "/none.so")]
    [InlineData("--json is /dev/null/result.json, which cannot be written", "--json", "/dev/null/result.json")]
    [InlineData("--json is /tmp, which is a folder; name a file", "--json", "/tmp")]
    [InlineData("no operation has 'nothing' in its name; there are leverage, chunk 512,", "--only", "select", "nothing")]
    [InlineData("--tokens takes multiples of 512", "--tokens", "100")]
    public void Bad_input_is_named_before_anything_is_measured(string said, params string[] arguments) =>
        Assert.Contains(said, Command.Run(Command.Python("torch"), [s_script, "--library", NativeBuild.Library, "--device", "cpu", .. arguments], exitCode: 2, variables: ("PYTHONDONTWRITEBYTECODE", "1")));

    /// <summary>A library beside the user is found by its name alone, a length asked for twice is measured once, and the library says what it was built from.</summary>
    [Fact]
    public void A_library_in_the_same_folder_is_found()
    {
        string file = Path.GetTempFileName();
        try
        {
            Command.Run(Command.Python("torch"), [s_script, "--library", Path.GetFileName(NativeBuild.Library), "--device", "cpu", "--tokens", "512", "512", "--only", "select", "--json", file],
                Path.GetDirectoryName(NativeBuild.Library), variables: ("PYTHONDONTWRITEBYTECODE", "1"));
            using var json = JsonDocument.Parse(File.ReadAllText(file));
            Assert.Equal(1, json.RootElement.GetProperty("operations").GetArrayLength());
            string said = Command.Run(Command.Python("torch"), ["-c", "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).compactor_version; f.restype = ctypes.c_char_p; print(f().decode(), end='')", NativeBuild.Library]);
            Assert.Equal(said, string.Join('+', new[] { "library", "commit" }.Select(name => json.RootElement.GetProperty(name).GetString()).OfType<string>()));
        }
        finally
        {
            File.Delete(file);
        }
    }

    [Fact]
    public void When_time_is_over_what_is_left_is_named()
    {
        string output = Command.Run(Command.Python("torch"), [s_script, "--library", NativeBuild.Library, "--device", "cpu", "--tokens", "512", "--seconds", "0"],
            exitCode: 124, variables: ("PYTHONDONTWRITEBYTECODE", "1"));
        Assert.Contains("not measured, time was over: select, L8, N 512", output);
    }
}
