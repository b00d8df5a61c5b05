using System.CommandLine;
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;

namespace Compactor.Bench.Suites;

/// <summary><c>suites</c>: BenchmarkDotNet, whose own arguments follow.</summary>
internal static class SuiteCommand
{
    /// <summary>The variable that names the shared library, here and in the samples.</summary>
    private const string Variable = "COMPACTOR_LIBRARY";

    public static Command New()
    {
        var library = new Option<string?>("--library") { Description = $"The shared library of the C interface, else that of {Variable}." };
        var command = new Command("suites", "BenchmarkDotNet suites: stages, paged cache, C interface; its own arguments follow.") { library };
        command.TreatUnmatchedTokensAsErrors = false;
        command.SetAction(parsed =>
        {
            List<Type> suites = [typeof(StageBenchmarks), typeof(PagedCacheBenchmarks)];
            string? path = parsed.GetValue(library) ?? Environment.GetEnvironmentVariable(Variable);
            if (File.Exists(path))
            {
                // the processes that measure inherit it
                Environment.SetEnvironmentVariable(Variable, Path.GetFullPath(path));
                suites.Add(typeof(AbiBenchmarks));
            }
            else if (path is not null)
            {
                Console.Error.WriteLine($"There is no shared library at {path}.");
                return 1;
            }
            else
                Console.WriteLine($"{nameof(AbiBenchmarks)} left out: make the shared library (dotnet publish interop/Compactor.Abi -c Release -r linux-x64 -o build/abi) and name it (--library build/abi/libcompactor_native.so).");
            string[] arguments = [.. parsed.UnmatchedTokens];
            // a build takes more than BenchmarkDotNet's two minutes where the machine does other work
            var config = ManualConfig.Create(DefaultConfig.Instance).WithBuildTimeout(TimeSpan.FromMinutes(10));
            Summary[] summaries = [.. BenchmarkSwitcher.FromTypes([.. suites]).Run(arguments, config)];
            if (summaries.Length == 0 && !arguments.Any(argument => argument is "--help" or "--list" or "--info" or "--version"))
            {
                Console.Error.WriteLine($"No benchmark has such a name, or an argument is not one of BenchmarkDotNet's: {string.Join(' ', arguments)}");
                return 1;
            }
            string[] missing = [.. summaries.SelectMany(summary => summary.BenchmarksCases.Where(benchmark => summary[benchmark] is not { Success: true })).Select(benchmark => benchmark.DisplayInfo)];
            if (missing.Length == 0 && !summaries.Any(summary => summary.HasCriticalValidationErrors || summary.Reports.IsEmpty))
                return 0;
            Console.Error.WriteLine($"Not measured: {(missing.Length > 0 ? string.Join("; ", missing) : "a whole suite")}. What was wrong stands above.");
            return 1;
        });
        return command;
    }
}
