using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Compactor.Bench;

/// <summary>A dated result: what was measured, on what, beside how much else, at which commit.</summary>
internal static class BenchResult
{
    private static double s_load;
    private static string? s_commit;

    /// <summary>Notes the commit, and how busy the machine is, before anything is measured.</summary>
    public static void Begin()
    {
        s_load = double.Parse(File.ReadAllText("/proc/loadavg").Split(' ')[0], CultureInfo.InvariantCulture);
        s_commit = Commit();
    }

    public static JsonObject New(string benchmark) => new()
    {
        ["benchmark"] = benchmark,
        ["date"] = DateTime.UtcNow.ToString("yyyy-MM-dd"),
        ["commit"] = s_commit,
        ["cpu"] = File.ReadLines("/proc/cpuinfo").FirstOrDefault(l => l.StartsWith("model name", StringComparison.Ordinal))?.Split(':', 2)[1].Trim(),
        ["cores"] = Environment.ProcessorCount,
        ["load_average_before"] = s_load,
        ["os"] = RuntimeInformation.OSDescription,
        ["dotnet"] = Environment.Version.ToString(),
    };

    public static void Save(JsonObject result, string path) =>
        File.WriteAllText(path, result.ToJsonString(new JsonSerializerOptions { WriteIndented = true }) + "\n");

    public static JsonArray Values(IEnumerable<double> values) => [.. values.Select(x => (JsonNode)x)];

    public static double Median(IReadOnlyCollection<double> values)
    {
        double[] sorted = [.. values.Order()];
        return (sorted[(sorted.Length - 1) / 2] + sorted[sorted.Length / 2]) / 2;
    }

    /// <summary>Null where git is missing, or the program lies in no checkout.</summary>
    private static string? Commit()
    {
        Process? git;
        try
        {
            git = Process.Start(new ProcessStartInfo("git", ["-C", AppContext.BaseDirectory, "describe", "--always", "--dirty", "--exclude=*"]) { RedirectStandardOutput = true, RedirectStandardError = true });
        }
        catch (Win32Exception)
        {
            return null;
        }
        using (git)
        {
            string commit = git!.StandardOutput.ReadToEnd().Trim();
            git.WaitForExit();
            return git.ExitCode == 0 ? commit : null;
        }
    }
}
