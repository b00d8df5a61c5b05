using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace Compactor.Cli.Tests;

/// <summary>The built tool, run as a process; <c>COMPACTOR_TOOL</c> names a published executable to test instead, as <c>tests/run.sh</c> does.</summary>
internal static class Tool
{
    private static readonly string[] s_built = ["dotnet", "exec", Path.Combine(AppContext.BaseDirectory, "compactor.dll")];

    public sealed record Result(int ExitCode, string Output, string Error)
    {
        /// <summary>Standard output as the one JSON document it must be.</summary>
        public JsonElement Json
        {
            get
            {
                Assert.True(ExitCode == 0, Error);
                using var document = JsonDocument.Parse(Output);
                return document.RootElement.Clone();
            }
        }

        /// <summary>A failure with one line on standard error and nothing on standard output.</summary>
        public void FailsWith(int exitCode, params string[] mentions)
        {
            Assert.Equal(exitCode, ExitCode);
            Assert.Empty(Output);
            foreach (string mention in mentions)
                Assert.Contains(mention, Error, StringComparison.Ordinal);
            Assert.DoesNotContain("   at ", Error, StringComparison.Ordinal);
            Assert.DoesNotContain("internal error", Error, StringComparison.Ordinal);
            if (exitCode == 1)
                Assert.Single(Error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        }
    }

    public static Result Run(params string[] arguments) => Run([], arguments);

    /// <summary>Runs the built tool, as <c>dotnet run</c> does, whatever is tested instead.</summary>
    public static Result RunBuilt(params string[] arguments) => Wait(StartCommand([.. s_built, .. arguments], [], null));

    public static Result RunIn(string folder, params string[] arguments) => Run([], arguments, folder);

    public static Result Run((string Name, string Value)[] variables, string[] arguments, string? folder = null) => Wait(Start(arguments, variables, folder));

    private static Result Wait(Process started)
    {
        using var process = started;
        var error = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return new Result(process.ExitCode, output, error.Result);
    }

    /// <summary>Starts the tool; its standard output and error are to be read.</summary>
    /// <param name="arguments">Arguments of the tool.</param>
    /// <param name="variables">Environment variables.</param>
    /// <param name="folder">Where it runs.</param>
    /// <param name="prefix">A command that becomes the tool, as <c>env</c> does.</param>
    public static Process Start(string[] arguments, (string Name, string Value)[]? variables = null, string? folder = null, params string[] prefix)
    {
        string[] tool = Environment.GetEnvironmentVariable("COMPACTOR_TOOL") is { } published ? [Path.GetFullPath(published)] : s_built;
        return StartCommand([.. prefix, .. tool, .. arguments], variables ?? [], folder);
    }

    private static Process StartCommand(string[] command, (string Name, string Value)[] variables, string? folder)
    {
        var start = new ProcessStartInfo(command[0], command[1..]) { RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = folder };
        foreach (var (name, value) in variables)
            start.Environment[name] = value;
        return Process.Start(start)!;
    }
}
