using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Runtime.ExceptionServices;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;
using Spectre.Console;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor kernels</c>: the CUDA kernels a model needs, compiled ahead of time or looked at. No GPU is needed.</summary>
internal static class KernelsCommand
{
    private static readonly int[] s_usualArchitectures = [80, 86, 89, 90];

    public static Command Create() => new("kernels", "Lists, compiles and shows the CUDA kernels of models; needs NVRTC, no GPU.") { List(), Compile(), Dump() };

    private static Command List()
    {
        var selection = new Selection();
        var json = new Option<bool>("--json") { Description = "Print one JSON document." };
        var command = selection.AddTo(new Command("list", "Shows the kernels of models, and what they take of a multiprocessor.") { json });
        command.SetAction(parsed =>
        {
            var nvrtc = selection.Open(parsed.CommandResult);
            KernelReport[] rows = [.. InParallel(selection.Modules(parsed.CommandResult, nvrtc), module => Resources(nvrtc, module)).SelectMany(ofModule => ofModule)];
            if (parsed.GetValue(json))
                JsonDocumentWriter.Write(writer =>
                {
                    writer.WriteString("nvrtc", nvrtc.Version.ToString());
                    writer.WriteStartArray("kernels");
                    foreach (var row in rows)
                        row.WriteJson(writer);
                    writer.WriteEndArray();
                });
            else
                Print(rows);
            return CommandLine.Success;
        });
        return command;
    }

    private static Command Compile()
    {
        var selection = new Selection();
        var output = new Option<string>("--out") { Description = "Folder for the compiled kernels, to ship as compactor-kernels beside the application.", HelpName = "dir", Required = true };
        var command = selection.AddTo(new Command("compile", "Compiles the kernels of models, so that an application needs a driver and no compiler.") { output });
        command.SetAction(parsed =>
        {
            var nvrtc = selection.Open(parsed.CommandResult);
            string folder = parsed.GetRequiredValue(output);
            long[] bytes = InParallel(selection.Modules(parsed.CommandResult, nvrtc), module =>
            {
                var code = KernelLibrary.Compile(nvrtc, module.Kernels[0].Variant, module.Target);
                KernelCache.Write(folder, module.Kernels[0].Variant, code);
                return (long)code.Image.Length;
            });
            Console.WriteLine($"{bytes.Length} modules compiled by NVRTC {nvrtc.Version} into {folder}, {Units.Bytes(bytes.Sum())}.");
            return CommandLine.Success;
        });
        return command;
    }

    private static Command Dump()
    {
        var selection = new Selection();
        var output = new Option<string>("--out") { Description = "Folder for the files.", HelpName = "dir", Required = true };
        var command = selection.AddTo(new Command("dump", "Writes machine code (.cubin) and PTX (.ptx) of the kernels of models, for cuobjdump, nvdisasm or reading.") { output });
        command.SetAction(parsed =>
        {
            var nvrtc = selection.Open(parsed.CommandResult);
            string folder = Directory.CreateDirectory(parsed.GetRequiredValue(output)).FullName;
            string[] names = InParallel(selection.Modules(parsed.CommandResult, nvrtc), module =>
            {
                var variant = module.Kernels[0].Variant;
                string name = string.Join('-', [Path.GetFileNameWithoutExtension(variant.Source), .. variant.Macros.Select(m => $"{m.Name["COMPACTOR_".Length..].ToLowerInvariant()}{m.Value}"), module.Target.Name]);
                File.WriteAllBytes(Path.Combine(folder, name + ".cubin"), KernelLibrary.Compile(nvrtc, variant, module.Target).Image);
                byte[] ptx = KernelLibrary.Compile(nvrtc, variant, module.Target with { IsPtx = true }).Image;
                File.WriteAllBytes(Path.Combine(folder, name + ".ptx"), ptx.AsSpan().TrimEnd((byte)0));
                return name;
            });
            Console.WriteLine($"{names.Length} modules as .cubin and .ptx in {folder}.");
            return CommandLine.Success;
        });
        return command;
    }

    /// <summary>Results in order; the first failure is thrown as it is.</summary>
    private static TResult[] InParallel<TResult>(IEnumerable<KernelModule> modules, Func<KernelModule, TResult> work)
    {
        try
        {
            return [.. modules.AsParallel().AsOrdered().Select(work)];
        }
        catch (AggregateException exception)
        {
            ExceptionDispatchInfo.Throw(exception.InnerExceptions[0]);
            throw;
        }
    }

    private static KernelReport[] Resources(NvrtcApi nvrtc, KernelModule module)
    {
        var resources = CubinResources.Read(KernelLibrary.Compile(nvrtc, module.Kernels[0].Variant, module.Target).Image);
        return [.. module.Kernels.Select(kernel => new KernelReport(kernel, module.Target.Architecture, resources[kernel.Variant.Entry]))];
    }

    private static void Print(IEnumerable<KernelReport> rows)
    {
        var table = new Table().RoundedBorder().AddColumn("Kernel").AddColumn("Macros");
        foreach (string column in (string[])["Arch", "Registers", "Stack B", "Shared B", "Threads", "Blocks/SM", "Code B"])
            table.AddColumn(new TableColumn(column).RightAligned());
        foreach (var row in rows)
            table.AddRow(new Text(row.Kernel.Variant.Entry), new Text(row.Macros), Number(row.Architecture), Number(row.Resources.Registers), Number(row.Resources.StackBytes),
                Number(row.SharedBytes), Number(row.Kernel.Threads), Number(row.BlocksPerMultiprocessor), Number(row.Resources.CodeBytes));
        Terminal.Output().Write(table);

        static Text Number(int value) => new(value.ToString("N0", CultureInfo.InvariantCulture));
    }

    /// <summary>What is compiled together, for one architecture.</summary>
    private sealed record KernelModule(CompileTarget Target, IReadOnlyList<PlannedKernel> Kernels);

    /// <summary>The options that say which kernels.</summary>
    private sealed class Selection
    {
        private readonly Option<string[]> _models = new("--model") { Description = $"Models: {string.Join(", ", KernelCatalog.Models.Select(m => m.Name))}. [default: all]", HelpName = "name", AllowMultipleArgumentsPerToken = true };
        private readonly Option<string[]> _presets = new("--preset") { Description = "Presets of the method. [default: all]", HelpName = "name", AllowMultipleArgumentsPerToken = true };
        private readonly Option<string?> _architectures = new("--arch") { Description = "Compute capabilities, such as 80,90. [default: 80,86,89,90]", HelpName = "list" };
        private readonly Option<string?> _nvrtc = new("--nvrtc") { Description = "Path of an NVRTC library, before any other place.", HelpName = "path" };

        public Selection()
        {
            _models.AcceptOnlyFromAmong([.. KernelCatalog.Models.Select(m => m.Name)]);
            _presets.AcceptOnlyFromAmong([.. CompressionPresets.ByName.Keys]);
        }

        public Command AddTo(Command command)
        {
            foreach (Option option in (Option[])[_models, _presets, _architectures, _nvrtc])
                command.Add(option);
            return command;
        }

        /// <exception cref="CompactorException">There is no NVRTC.</exception>
        public NvrtcApi Open(SymbolResult result) => KernelLibrary.OpenNvrtc(LibrarySearch.Nvrtc(SearchEnvironment.Current with { NvrtcPath = result.GetValue(_nvrtc) }), null);

        /// <summary>Modules of the kernels; those for sm_90a are among them where NVRTC knows it.</summary>
        public IEnumerable<KernelModule> Modules(SymbolResult result, NvrtcApi nvrtc)
        {
            string[] models = result.GetValue(_models) ?? [], presets = result.GetValue(_presets) ?? [];
            foreach (int architecture in Architectures(result))
            {
                var limits = Occupancy.LimitsOf(architecture) with { HopperKernels = architecture == KernelLibrary.SpecificArchitecture && nvrtc.Version >= CompileTarget.SpecificSince };
                var planned =
                    from model in KernelCatalog.Models
                    where models.Length == 0 || models.Contains(model.Name)
                    from preset in CompressionPresets.ByName
                    where presets.Length == 0 || presets.Contains(preset.Key)
                    from kernel in KernelCatalog.Plan(model, preset.Value, limits)
                    select kernel;
                foreach (var module in planned.Distinct().GroupBy(kernel => kernel.Variant.Module))
                    yield return new KernelModule(CompileTarget.CubinOf(module.First().Variant, architecture), [.. module]);
            }
        }

        private int[] Architectures(SymbolResult result) => result.GetValue(_architectures) is not { } list ? s_usualArchitectures
            : [.. list.Split(',').Select(text => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int architecture) ? architecture
                : throw new UsageException($"--arch is '{list}'; give compute capabilities without dots, such as 80,90."))];
    }
}
