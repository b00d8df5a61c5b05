using System.CommandLine;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using System.Text.Json;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;
using Spectre.Console;
using Arm = System.Runtime.Intrinsics.Arm;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor doctor</c>: what this machine offers, and where CUDA was looked for.</summary>
internal static class DoctorCommand
{
    public static Command Create()
    {
        var nvrtc = new Option<string?>("--nvrtc") { Description = "Path of an NVRTC library, before any other place.", HelpName = "path" };
        var json = new Option<bool>("--json") { Description = "Print one JSON document." };
        var command = new Command("doctor", "Shows the CPU, and every place the CUDA driver and NVRTC were looked for.") { nvrtc, json };
        command.SetAction(parsed =>
        {
            var environment = SearchEnvironment.Current with { NvrtcPath = parsed.GetValue(nvrtc) };
            LibrarySearch[] searches = [LibrarySearch.Driver(environment), LibrarySearch.Nvrtc(environment)];
            using var cpu = new CpuBackend();
            var (gpu, reason) = Gpu(environment);
            if (parsed.GetValue(json))
                JsonDocumentWriter.Write(writer => WriteJson(writer, cpu, gpu, reason, searches));
            else
                Print(Terminal.Output(), cpu, gpu, reason, searches);
            return CommandLine.Success;
        });
        return command;
    }

    /// <summary>The GPU and, without one that can be used, the reason.</summary>
    private static (string? Description, string? Reason) Gpu(SearchEnvironment environment)
    {
        try
        {
            using var backend = GpuBackend.Open(new CudaOptions { Search = environment });
            return (backend.Description, null);
        }
        catch (CompactorException exception)
        {
            return (null, exception.Message);
        }
    }

    private static string? KernelFolder => KernelCache.DefaultFolder(Environment.GetEnvironmentVariable);

    private static IEnumerable<string> InstructionSets() => new (string Name, bool Supported)[]
    {
        ("SSE4.2", Sse42.IsSupported), ("AVX", Avx.IsSupported), ("AVX2", Avx2.IsSupported), ("FMA", Fma.IsSupported),
        ("AVX-512F", Avx512F.IsSupported), ("AVX-512BW", Avx512BW.IsSupported), ("AVX-512VBMI", Avx512Vbmi.IsSupported),
        ("AdvSimd", Arm.AdvSimd.IsSupported), ("ARM dot product", Arm.Dp.IsSupported),
    }.Where(set => set.Supported).Select(set => set.Name);

    /// <summary>Whether this executable was compiled ahead of time for less than AVX-512, on a machine that would run it with AVX-512 (x86-64-v4).</summary>
    private static bool IsCompiledForLess()
    {
        if (RuntimeFeature.IsDynamicCodeSupported || Avx512F.IsSupported || !File.Exists("/proc/cpuinfo"))
            return false;
        string[] flags = File.ReadLines("/proc/cpuinfo").FirstOrDefault(line => line.StartsWith("flags", StringComparison.Ordinal))?.Split(' ') ?? [];
        return new[] { "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl" }.All(flags.Contains);
    }

    private static string Describe(LibraryCandidate candidate) => candidate.Outcome switch
    {
        LibraryOutcome.Found => $"found, version {candidate.Version}",
        LibraryOutcome.NotPresent => "not present",
        _ => $"failed: {candidate.Reason}",
    };

    private static void Print(IAnsiConsole console, CpuBackend cpu, string? gpu, string? reason, LibrarySearch[] searches)
    {
        var machine = new Grid().AddColumn(new GridColumn().NoWrap()).AddColumn();
        void Row(string name, string value) => machine.AddRow(new Text(name), new Text(value));
        Row("System", $"{RuntimeInformation.OSDescription}, {RuntimeInformation.OSArchitecture}");
        Row("Runtime", $"{RuntimeInformation.FrameworkDescription}, {RuntimeInformation.RuntimeIdentifier}");
        Row("CPU cores", $"{Environment.ProcessorCount}");
        Row("SIMD", $"{(int)cpu.Width}-bit vectors used; {string.Join(", ", InstructionSets())}{(IsCompiledForLess() ? "; the CPU has AVX-512, for which this executable was not compiled (README, IlcInstructionSet)" : "")}");
        Row("Backends", gpu is null ? "cpu" : "cpu, cuda");
        Row("GPU", gpu ?? $"none that can be used: {reason}");
        Row("Compiled kernels", KernelFolder ?? "not kept: no folder for caches is known; set COMPACTOR_CACHE");
        console.Write(machine);
        foreach (var search in searches)
        {
            Console.WriteLine();
            Console.WriteLine(search.Error is { } error ? $"{search.Library}: {error}"
                : search.Found is { } found ? $"{search.Library}: version {found.Version} at {found.Place}"
                : $"{search.Library}: not found");
            var table = new Table().RoundedBorder().AddColumn("Because of").AddColumn("Place").AddColumn("Outcome");
            foreach (var candidate in search.Candidates)
                table.AddRow(new Text(candidate.Source), new Text(candidate.Place), new Text(Describe(candidate)));
            console.Write(table);
        }
    }

    private static void WriteJson(Utf8JsonWriter json, CpuBackend cpu, string? gpu, string? reason, LibrarySearch[] searches)
    {
        json.WriteString("os", RuntimeInformation.OSDescription);
        json.WriteString("architecture", RuntimeInformation.OSArchitecture.ToString());
        json.WriteString("runtime", RuntimeInformation.FrameworkDescription);
        json.WriteString("runtime_identifier", RuntimeInformation.RuntimeIdentifier);
        json.WriteNumber("cpu_cores", Environment.ProcessorCount);
        json.WriteNumber("simd_bits", (int)cpu.Width);
        json.WriteStartArray("instruction_sets");
        foreach (string set in InstructionSets())
            json.WriteStringValue(set);
        json.WriteEndArray();
        json.WriteBoolean("compiled_for_less", IsCompiledForLess());
        json.WriteStartArray("backends");
        json.WriteStringValue("cpu");
        if (gpu is not null)
            json.WriteStringValue("cuda");
        json.WriteEndArray();
        json.WriteString("gpu", gpu);
        json.WriteString("gpu_reason", reason);
        json.WriteString("kernel_folder", KernelFolder);
        foreach (var (name, search) in new[] { "cuda_driver", "nvrtc" }.Zip(searches))
        {
            json.WriteStartObject(name);
            json.WriteString("found", search.Found?.Place);
            json.WriteString("version", search.Found?.Version?.ToString());
            json.WriteString("error", search.Error);
            json.WriteStartArray("places");
            foreach (var candidate in search.Candidates)
            {
                json.WriteStartObject();
                json.WriteString("source", candidate.Source);
                json.WriteString("place", candidate.Place);
                json.WriteString("outcome", candidate.Outcome switch
                {
                    LibraryOutcome.Found => "found",
                    LibraryOutcome.NotPresent => "not present",
                    _ => "failed",
                });
                json.WriteString("version", candidate.Version?.ToString());
                json.WriteString("reason", candidate.Reason);
                json.WriteEndObject();
            }
            json.WriteEndArray();
            json.WriteEndObject();
        }
    }
}
