using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace Compactor.Bench;

/// <summary>Options that several benchmarks have; values that cannot work are named before anything is measured.</summary>
internal static class BenchOptions
{
    public static Option<int> Count(string name, string description, int otherwise, int least = 1, int most = int.MaxValue) =>
        Number(name, description, otherwise, value => value >= least && value <= most, $"{least} {(most == int.MaxValue ? "or more" : $"to {most}")}");

    /// <summary>A number that has to be accepted; where it is not, <paramref name="use"/> says what is.</summary>
    public static Option<int> Number(string name, string description, int otherwise, Func<int, bool> accepts, string use)
    {
        var option = new Option<int>(name) { Description = description, DefaultValueFactory = _ => otherwise };
        option.Validators.Add(result =>
        {
            if (result.Tokens is [var token] && int.TryParse(token.Value, CultureInfo.InvariantCulture, out int value) && !accepts(value))
                result.AddError($"{name} is {value}; use {use}.");
        });
        return option;
    }

    public static Option<int> Threads() => Count("--threads", "Threads of the library, 0 for all cores.", Math.Min(2, Environment.ProcessorCount), least: 0, most: Environment.ProcessorCount);

    public static Option<string?> Json() => File("--json", "Write the result to this file.");

    /// <summary>A file to be written when all is measured.</summary>
    public static Option<string?> File(string name, string description)
    {
        var option = new Option<string?>(name) { Description = description };
        option.Validators.Add(result => TryToWrite(name, result));
        return option;
    }

    /// <summary>Leaves a file that exists as it is, and none where none was.</summary>
    private static void TryToWrite(string name, OptionResult result)
    {
        if (result.GetValueOrDefault<string?>() is not { } path)
            return;
        try
        {
            bool existed = System.IO.File.Exists(path);
            using (System.IO.File.OpenHandle(path, FileMode.OpenOrCreate, FileAccess.Write)) { }
            if (!existed)
                System.IO.File.Delete(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or ArgumentException)
        {
            result.AddError($"{name} is {path}, which cannot be written: {exception.Message}");
        }
    }
}
