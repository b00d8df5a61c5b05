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

    /// <summary>OpenBLAS's threads wait busily for so many cycles (a power of two, half a millisecond) for their next product, instead of 30 ms: not into somebody else's turn.</summary>
    private const string SpinCycles = "20";

    private readonly string _path;
    private string? _coreType;

    private Python(string path) => _path = path;

    /// <summary>Seconds of matrix products with each of OpenBLAS's kernels, for the result file, and the kernels that were chosen.</summary>
    public JsonObject OpenBlas { get; } = [];

    /// <summary>The Python at a path; null, and what to install, where it has no PyTorch and NumPy.</summary>
    public static Python? Find(string path)
    {
        var python = new Python(path);
        try
        {
            python.ChooseKernels();
            return python;
        }
        catch (System.ComponentModel.Win32Exception exception)
        {
            Console.Error.WriteLine($"{path} does not start: {exception.Message}");
        }
        catch (InvalidOperationException)
        {
            Console.Error.WriteLine($"{path} cannot compare. It needs torch and numpy: apt-get install python3-torch python3-numpy libopenblas0-pthread");
        }
        return null;
    }

    /// <summary>Starts a script of peers/ with its standard input and output here.</summary>
    /// <param name="script">Its name.</param>
    /// <param name="folder">What it works in, if anything.</param>
    /// <param name="wide">PyTorch's kernels for 512-bit vectors, which it takes on request alone.</param>
    public Process Start(string script, string? folder = null, bool wide = false)
    {
        var start = new ProcessStartInfo(_path, [Path.Combine(AppContext.BaseDirectory, "peers", script), .. folder is null ? (string[])[] : [folder]]) { RedirectStandardInput = true, RedirectStandardOutput = true };
        start.Environment["PYTHONDONTWRITEBYTECODE"] = "1";
        start.Environment["GLIBC_TUNABLES"] = $"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={long.MaxValue}";
        start.Environment[CoreType] = _coreType;
        start.Environment["OPENBLAS_THREAD_TIMEOUT"] = SpinCycles;
        if (wide)
            start.Environment["ATEN_CPU_CAPABILITY"] = "avx512";
        return Process.Start(start) ?? throw new InvalidOperationException($"{_path} did not start.");
    }

    private void ChooseKernels()
    {
        var seconds = new List<(string? Kernels, string Name, double Seconds)>();
        foreach (string? kernels in ((string?[])[null, "Haswell", Avx512F.IsSupported ? "SkylakeX" : null, Environment.GetEnvironmentVariable(CoreType)]).Distinct())
        {
            _coreType = kernels;
            seconds.Add((kernels, kernels ?? "its own choice", SecondsOfProducts()));
        }
        string chosen;
        (_coreType, chosen, _) = seconds.MinBy(s => s.Seconds);
        foreach (var (_, name, time) in seconds)
            OpenBlas[name] = time;
        OpenBlas["chosen"] = chosen;
        Console.WriteLine($"PyTorch's matrix products by OpenBLAS's kernels: {string.Join(", ", seconds.Select(s => $"{s.Name} {s.Seconds * 1e3:F2} ms"))}; {chosen} is used");
    }

    private double SecondsOfProducts()
    {
        using var process = Start("openblas.py");
        string seconds = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0 ? double.Parse(seconds, CultureInfo.InvariantCulture) : throw new InvalidOperationException($"openblas.py ended with {process.ExitCode}.");
    }
}
