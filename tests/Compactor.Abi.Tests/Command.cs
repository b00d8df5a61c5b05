using System.Diagnostics;
using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>Programs run by tests.</summary>
internal static class Command
{
    /// <summary>Runs a program to its end, and fails the test with all it said unless it exits with the expected status.</summary>
    public static string Run(string program, IEnumerable<string> arguments, string? folder = null, int exitCode = 0, params (string Name, string Value)[] variables)
    {
        var start = new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = folder };
        // a build server left behind would keep the test's folders open
        start.Environment["MSBUILDDISABLENODEREUSE"] = "1";
        start.Environment["DOTNET_CLI_USE_MSBUILD_SERVER"] = "0";
        start.Environment["DOTNET_NOLOGO"] = "1";
        start.Environment["DOTNET_CLI_TELEMETRY_OPTOUT"] = "1";
        foreach (var (name, value) in variables)
            start.Environment[name] = value;
        using var process = Process.Start(start)!;
        var error = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == exitCode, $"{program} {string.Join(' ', arguments)} ended with {process.ExitCode}, not {exitCode}:\n{output}\n{error.Result}");
        return output + error.Result;
    }

    /// <summary>A Python 3 that has a package, or several, separated by commas.</summary>
    public static string Python(string package = "numpy")
    {
        foreach (string python in (string[])["python3", "/usr/bin/python3"])
        {
            using var probe = Process.Start(new ProcessStartInfo(python, ["-c", $"import {package}"]) { RedirectStandardError = true });
            probe?.StandardError.ReadToEnd();
            probe?.WaitForExit();
            if (probe?.ExitCode == 0)
                return python;
        }
        throw new InvalidOperationException($"No python3 here has {package}; install it (Debian: python3-{package.Replace(", ", " python3-", StringComparison.Ordinal)}).");
    }
}
