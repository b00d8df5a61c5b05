using System.Diagnostics;
using System.Globalization;
using System.Runtime.Intrinsics.X86;
using System.Text.Json.Nodes;

namespace Compactor.Bench.Peers;

/// <summary>
/// A Python with PyTorch, started with what makes PyTorch fastest here. Memory that PyTorch frees stays with the process (glibc would give large pieces back and fault them in again every run),
/// and OpenBLAS takes the kernels that are fastest, which it does not find itself on every machine.
/// </summary>
internal sealed class Python
{
    private const string CoreType = "OPENBLAS_CORETYPE";

    private readonly string _path;
    private string? _coreType;

    private Python(string path) => _path = path;

    /// <summary>Seconds of matrix products with each of OpenBLAS's kernels, for the result file, and the kernels that were chosen.</summary>
    public JsonObject OpenBlas { get; } = [];

    /// <summary>The Python at a path; null, and what to install, where it has no PyTorch and NumPy.</summary>
    public static Python? Find(string path)
    {
        try
        {
            using var probe = Process.Start(new ProcessStartInfo(path, ["-c", "import torch, numpy"]) { RedirectStandardError = true })!;
            probe.StandardError.ReadToEnd();
            probe.WaitForExit();
            if (probe.ExitCode == 0)
            {
                var python = new Python(path);
                python.ChooseKernels();
                return python;
            }
        }
        catch (System.ComponentModel.Win32Exception exception)
        {
            Console.Error.WriteLine($"{path} does not start: {exception.Message}");
        }
        Console.Error.WriteLine($"{path} has no torch and numpy; install them with: apt-get install python3-torch python3-numpy libopenblas0-pthread");
        return null;
    }

    /// <summary>Starts a script of peers/ with its standard input and output here.</summary>
    public Process Start(string script, params string[] arguments)
    {
        var start = new ProcessStartInfo(_path, [Path.Combine(AppContext.BaseDirectory, "peers", script), .. arguments]) { RedirectStandardInput = true, RedirectStandardOutput = true };
        start.Environment["PYTHONDONTWRITEBYTECODE"] = "1";
        start.Environment["GLIBC_TUNABLES"] = $"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={long.MaxValue}";
        start.Environment[CoreType] = _coreType;
        return Process.Start(start) ?? throw new InvalidOperationException($"{_path} did not start.");
    }

    /// <summary>Runs a script to its end and returns what it printed.</summary>
    /// <exception cref="InvalidOperationException">It failed; its error is on standard error.</exception>
    public string Run(string script, params string[] arguments)
    {
        using var process = Start(script, arguments);
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0 ? output : throw new InvalidOperationException($"{script} ended with {process.ExitCode}; its error is above.");
    }

    private void ChooseKernels()
    {
        var seconds = new List<(string? Kernels, string Name, double Seconds)>();
        foreach (string? kernels in ((string?[])[null, "Haswell", Avx512F.IsSupported ? "SkylakeX" : null, Environment.GetEnvironmentVariable(CoreType)]).Distinct())
        {
            _coreType = kernels;
            seconds.Add((kernels, kernels ?? "its own choice", double.Parse(Run("openblas.py"), CultureInfo.InvariantCulture)));
        }
        string chosen;
        (_coreType, chosen, _) = seconds.MinBy(s => s.Seconds);
        foreach (var (_, name, time) in seconds)
            OpenBlas[name] = time;
        OpenBlas["chosen"] = chosen;
        Console.WriteLine($"PyTorch's matrix products by OpenBLAS's kernels: {string.Join(", ", seconds.Select(s => $"{s.Name} {s.Seconds * 1e3:F2} ms"))}; {chosen} is used");
    }
}
