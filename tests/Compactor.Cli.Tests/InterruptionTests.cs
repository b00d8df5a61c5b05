using System.Diagnostics;
using System.Runtime.InteropServices;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Cli.Tests;

/// <summary>Ctrl-C at any moment of a compression leaves nothing behind.</summary>
public partial class InterruptionTests : TemporaryFolder
{
    private const int Interrupt = 2, ExitCode = 130, Tokens = 200_000;

    [Fact]
    public void While_it_computes()
    {
        string input = new TestDump(4, [0, 1500]).Save(At("in.safetensors"));
        // The file is mapped before anything is computed, and much remains to be done then.
        var (exitCode, _) = Run(process => File.ReadAllText($"/proc/{process.Id}/maps").Contains(input, StringComparison.Ordinal),
            "compress", input, "--threads", "1", "--out", At("out.safetensors"), "--report", At("report"));
        Assert.Equal(ExitCode, exitCode);
        Assert.Equal([input], Entries());
    }

    [Fact]
    public void While_it_writes()
    {
        string input = Large().Save(At("in.safetensors"));
        File.WriteAllText(At("out.safetensors"), "as it was");
        var (exitCode, error) = Run(_ => Directory.EnumerateFiles(Path.GetDirectoryName(input)!, "*.tmp").Any(),
            "compress", input, "--retention", "1", "--out", At("out.safetensors"), "--report", At("report"));
        Assert.Equal((ExitCode, "compactor: interrupted; nothing was written.\n"), (exitCode, error));
        Assert.Equal([input, At("out.safetensors")], Entries());
        Assert.Equal("as it was", File.ReadAllText(At("out.safetensors")));
    }

    private string[] Entries() => [.. Directory.GetFileSystemEntries(Path.GetDirectoryName(At("x"))!).Order(StringComparer.Ordinal)];

    /// <summary>A cache that takes long to write and, kept whole, little to compute.</summary>
    private static TestDump Large()
    {
        var dump = new TestDump(1, [0, 0]).Without("query").Without("key_pre_rope");
        long[] shape = [Tokens, TestDump.KvHeads, TestDump.Dim];
        foreach (string role in (string[])["key", "value"])
            dump.Tensors["layers.0." + role] = (SafetensorsType.F16, shape, new byte[2L * Tokens * TestDump.KvHeads * TestDump.Dim]);
        return dump.Without("cu_seqlens");
    }

    /// <summary>Runs the tool and interrupts it once it is as far as <paramref name="reached"/> says.</summary>
    private static (int ExitCode, string Error) Run(Func<Process, bool> reached, params string[] arguments)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "signals are sent and processes observed the Linux way");
        // Where the tests run in the background, Ctrl-C is ignored, and what they start inherits that.
        using var process = Tool.Start(arguments, prefix: ["env", "--default-signal=INT"]);
        var (output, error) = (process.StandardOutput.ReadToEndAsync(), process.StandardError.ReadToEndAsync());
        while (!process.HasExited && !Reached())
            ;
        Assert.False(process.HasExited, "it ended too early to be interrupted");
        Assert.Equal(0, Kill(process.Id, Interrupt));
        process.WaitForExit();
        Assert.Empty(output.Result);
        return (process.ExitCode, error.Result);

        bool Reached()
        {
            try
            {
                return reached(process);
            }
            catch (IOException)
            {
                return false; // the process has just ended
            }
        }
    }

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int process, int signal);
}
