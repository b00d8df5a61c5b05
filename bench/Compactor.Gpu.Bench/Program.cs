using System.CommandLine;
using System.Globalization;
using Compactor.Bench;
using Compactor.Gpu.Bench;
using Compactor.Native;
using Compactor.Native.Cuda;

var tokens = new Option<int[]>("--tokens") { Description = "Lengths N.", AllowMultipleArgumentsPerToken = true, DefaultValueFactory = _ => [4096, 32_768, 131_072] };
var models = new Option<string[]>("--model") { Description = "Layers.", AllowMultipleArgumentsPerToken = true, DefaultValueFactory = _ => [.. BenchModel.All.Select(m => m.Name)] };
models.AcceptOnlyFromAmong([.. BenchModel.All.Select(m => m.Name)]);
var operations = new Option<string[]>("--operation") { Description = "Only operations whose name holds one of these.", AllowMultipleArgumentsPerToken = true, HelpName = "text" };
var repeats = BenchOptions.Count("--repeats", "Timed repeats; their median counts.", 15);
var seconds = BenchOptions.Count("--seconds", "Nothing more is begun after so long, and what is left is named.", 600);
var kernels = new Option<string?>("--kernels") { Description = "Folder of compiled kernels to use before any compiler.", HelpName = "dir" };
var json = BenchOptions.Json();
tokens.Validators.Add(result =>
{
    foreach (var token in result.Tokens)
        if (int.TryParse(token.Value, CultureInfo.InvariantCulture, out int n) && n < 64)
            result.AddError($"--tokens is {n}; use 64 or more.");
});

const int TimeIsOver = 124;   // as timeout(1) says it
var root = new RootCommand("Times the operations of Compactor.Native on a CUDA device, beside a copy and a matrix product of the same device. Exit codes: 0, 1 for a failure, 2 for wrong usage, 124 where time was not enough.")
{
    tokens, models, operations, repeats, seconds, kernels, json,
};
root.SetAction(parsed =>
{
    try
    {
        using var device = new CudaBenchDevice(new CudaOptions { KernelFolders = parsed.GetValue(kernels) is { } folder ? [folder] : [], Announce = Console.Error.WriteLine });
        var benchmark = new GpuBenchmark(device, parsed.GetValue(repeats), TimeSpan.FromSeconds(parsed.GetValue(seconds)), Console.Out);
        // Whoever is stopped leaves what was measured by then.
        benchmark.Run([.. BenchModel.All.Where(m => parsed.GetValue(models)!.Contains(m.Name))], parsed.GetValue(tokens)!, parsed.GetValue(operations)!, measured: Save);
        Save();
        return benchmark.IsComplete ? 0 : TimeIsOver;

        void Save()
        {
            if (parsed.GetValue(json) is not { } path)
                return;
            using (var file = File.Create(path + ".part"))
                benchmark.WriteJson(file);
            File.Move(path + ".part", path, overwrite: true);
        }
    }
    catch (CompactorException exception)
    {
        Console.Error.WriteLine(exception.Message);
        return 1;
    }
});
var command = root.Parse(args);
foreach (var error in command.Errors)
    Console.Error.WriteLine(error.Message);
return command.Errors.Count > 0 ? 2 : command.Invoke();
