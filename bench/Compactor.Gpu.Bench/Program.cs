using System.CommandLine;
using Compactor.Gpu.Bench;
using Compactor.Native;
using Compactor.Native.Cuda;

var tokens = new Option<int[]>("--tokens") { Description = "Lengths N.", AllowMultipleArgumentsPerToken = true, DefaultValueFactory = _ => [4096, 32_768, 131_072] };
var models = new Option<string[]>("--model") { Description = "Layers.", AllowMultipleArgumentsPerToken = true, DefaultValueFactory = _ => [.. BenchModel.All.Select(m => m.Name)] };
models.AcceptOnlyFromAmong([.. BenchModel.All.Select(m => m.Name)]);
var operations = new Option<string[]>("--operation") { Description = "Only operations whose name holds one of these.", AllowMultipleArgumentsPerToken = true, HelpName = "text" };
var repeats = new Option<int>("--repeats") { Description = "Timed repeats; their median counts.", DefaultValueFactory = _ => 15 };
var seconds = new Option<int>("--seconds") { Description = "Nothing more is begun after so long, and what is left is named.", DefaultValueFactory = _ => 600 };
var kernels = new Option<string?>("--kernels") { Description = "Folder of compiled kernels to use before any compiler.", HelpName = "dir" };
var json = new Option<string?>("--json") { Description = "Write the result to this file.", HelpName = "file" };
foreach (var positive in (Option<int>[])[repeats, seconds])
    positive.Validators.Add(result =>
    {
        if (result.GetValueOrDefault<int>() < 1)
            result.AddError($"{positive.Name} must be 1 or more.");
    });
tokens.Validators.Add(result =>
{
    if (result.GetValueOrDefault<int[]>() is { } given && given.Any(n => n < 64))
        result.AddError("--tokens must be 64 or more.");
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
var parseResult = root.Parse(args);
return parseResult.Errors.Count > 0 && parseResult.Invoke() >= 0 ? 2 : parseResult.Invoke();
