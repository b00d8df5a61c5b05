using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;
using Compactor.Native;
using Compactor.Native.Gpu;

namespace Compactor.Gpu.Tests.Simt;

/// <summary>
/// Makes shared libraries with the system's g++: the emulator's runtime, and kernel variants linked to it. Each lies in a folder named by the hash of all it is made of;
/// a library appears by renaming, so processes may share the folder.
/// </summary>
internal static partial class SimtCompiler
{
    private const string Common = "-std=c++17 -gdwarf-4 -march=native -ffp-contract=off -fPIC -Wall -Wextra -Wno-psabi";

    // As tests/simt/CMakeLists.txt compiles device code.
    private const string Device = "-O1 -fno-tree-vectorize -fno-tree-slp-vectorize -fsanitize=thread --param=tsan-instrument-func-entry-exit=0";

    private static readonly string s_emulator = Path.Combine(AppContext.BaseDirectory, "simt");

    private static readonly string s_cache = Path.Combine(AppContext.BaseDirectory, "simt-cache");

    // The compiler and the processor that -march=native means.
    private static readonly Lazy<string> s_machine = new(() => Run("g++", ["-march=native", "-Q", "--help=target", "--version"], s_emulator));

    /// <summary>The runtime's library, compiled now unless it lies there.</summary>
    public static string Runtime { get; } = CompileRuntime();

    /// <summary>The library of a source with a variant's macros, compiled now unless it lies there. It exports <c>simt_entry_NAME</c> for each entry point.</summary>
    /// <exception cref="CompactorException">It does not compile; the message is the compiler's.</exception>
    public static string Compile(KernelVariant variant)
    {
        string source = KernelSources.Sources.TryGetValue(variant.Source, out string? text) ? text : throw new InvalidOperationException($"There is no kernel source '{variant.Source}'.");
        var unit = new StringBuilder($"#include \"{variant.Source}\"\n#include \"simt_entry.hpp\"\n");
        foreach (Match entry in EntryPoint().Matches(source))
            unit.Append($"SIMT_EXPORT({entry.Groups[1].Value})\n");
        string arguments = $"{Common} {Device} {string.Join(' ', variant.Macros.Select(m => $"-D{m.Name}={m.Value}"))}";
        var files = KernelSources.Headers.Append(new(variant.Source, source)).Append(new("unit.cpp", unit.ToString()));
        string key = Hash([arguments, Runtime, .. files.SelectMany(f => new[] { f.Key, f.Value })]);
        return Make(Path.Combine(s_cache, $"{Path.GetFileNameWithoutExtension(variant.Source)}-{key}"), "kernel.so", (folder, library) =>
        {
            foreach (var (name, content) in files)
                File.WriteAllText(Path.Combine(folder, name), content);
            Run("g++", [.. arguments.Split(' ', StringSplitOptions.RemoveEmptyEntries), "-include", Path.Combine(s_emulator, "simt.hpp"), "-I", folder, "-I", s_emulator,
                "-c", "unit.cpp", "-o", "unit.o"], folder);
            // Linked apart, so that the calls go to the emulator's functions and not to the sanitizer's library.
            Run("g++", ["-shared", "unit.o", Runtime, "-Wl,-rpath," + Path.GetDirectoryName(Runtime), "-o", library], folder);
        });
    }

    private static string CompileRuntime()
    {
        if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture != Architecture.X64)
            throw new PlatformNotSupportedException($"The emulator's fibers are written for x86-64 Linux; this is {RuntimeInformation.RuntimeIdentifier}.");
        string[] sources = Directory.GetFiles(Path.Combine(s_emulator, "runtime"), "*.cpp");
        Array.Sort(sources, string.CompareOrdinal);
        string[] headers = Directory.GetFiles(s_emulator, "*.hpp", SearchOption.AllDirectories);
        Array.Sort(headers, string.CompareOrdinal);
        string types = KernelSources.Headers["types.cuh"];
        string key = Hash([Common, s_machine.Value, types, .. sources.Concat(headers).Select(File.ReadAllText)]);
        return Make(Path.Combine(s_cache, $"runtime-{key}"), "libsimt.so", (folder, library) =>
        {
            File.WriteAllText(Path.Combine(folder, "types.cuh"), types);
            Run("g++", [.. Common.Split(' '), "-O3", "-shared", "-I", folder, .. sources, "-Wl,-soname,libsimt.so", "-ldl", "-o", library], folder);
        });
    }

    // Runs `build` in a folder of its own and renames its result into place.
    private static string Make(string folder, string name, Action<string, string> build)
    {
        string library = Path.Combine(folder, name);
        if (File.Exists(library))
            return library;
        string work = $"{folder}.{Environment.ProcessId}.{Environment.CurrentManagedThreadId}";
        Directory.CreateDirectory(work);
        build(work, name);
        try
        {
            Directory.Move(work, folder);
        }
        catch (IOException) when (File.Exists(library))
        {
            Directory.Delete(work, true); // another process was faster
        }
        return library;
    }

    private static string Run(string program, IEnumerable<string> arguments, string folder)
    {
        var start = new ProcessStartInfo(program, arguments) { WorkingDirectory = folder, RedirectStandardOutput = true, RedirectStandardError = true };
        using var process = Process.Start(start)!;
        var errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0 ? output : throw new CompactorException(CompactorStatus.CompilationFailed, $"{program} {string.Join(' ', arguments)}\nin {folder}:\n{errors.Result}");
    }

    private static string Hash(IEnumerable<string> parts)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (string part in parts)
        {
            hash.AppendData(Encoding.UTF8.GetBytes(part));
            hash.AppendData([0]);
        }
        return Convert.ToHexStringLower(hash.GetHashAndReset().AsSpan(0, 12));
    }

    [GeneratedRegex(@"(\w+)\s*\(\s*const\s+__grid_constant__")]
    private static partial Regex EntryPoint();
}
