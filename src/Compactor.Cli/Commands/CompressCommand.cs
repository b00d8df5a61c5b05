using System.CommandLine;
using System.CommandLine.Parsing;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Io;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor compress</c>: scores, selects and compacts the cache in a file.</summary>
internal static class CompressCommand
{
    private const int SmallestBlock = 16, LargestBlock = 256;

    public static Command Create()
    {
        var input = new Argument<string>("in") { Description = "A safetensors file with layers.{i}.key, .value, .key_pre_rope and .query, or one layer without the prefix." };
        var output = new Option<string?>("--out") { Description = "Safetensors file for scores, kept indices and survivors; none is written without it.", HelpName = "out" };
        var report = new Option<string?>("--report") { Description = "Folder for a page with pictures, new or of an earlier report: index.html, report.json and PNG files.", HelpName = "dir" };
        var json = new Option<bool>("--json") { Description = "Print one JSON document instead of a table." };
        var budget = new BudgetOptions();
        var method = new MethodOptions();
        var theta = ValueOption.Number<double>("--rope-theta", "RoPE base, to undo the rotation of keys when the file has none from before it.", "x");
        var style = ValueOption.Choice("--rope-style", "How RoPE pairs dimensions. [default: half]", ("half", RotaryStyle.HalfRotation), ("interleaved", RotaryStyle.Interleaved));
        var rotaryDim = ValueOption.Number<int>("--rotary-dim", "Rotated dimensions at the start of a head. [default: all]");
        var layout = ValueOption.Choice("--layout", "Order of dimensions: packed [tokens, heads, dim] or [batch, heads, tokens, dim]. [default: nhd]", ("nhd", KvLayout.PackedTokens), ("bhsd", KvLayout.BatchHeadSequence));
        var blockSize = ValueOption.Number<int>("--block-size", $"Tokens of a head-block of the paged cache: {SmallestBlock} to {LargestBlock}. [default: {CompressionSettings.DefaultBlockSize}]");
        var backend = ValueOption.Choice("--backend", "What computes; auto is a GPU where there is one. [default: cpu]", ("auto", BackendChoice.Auto), ("cuda", BackendChoice.Cuda), ("cpu", BackendChoice.Cpu));
        var threads = ValueOption.Number<int>("--threads", "Threads; 0 for all cores. Results do not depend on it. [default: 0]");

        var command = new Command("compress", "Compresses the KV cache in a file and shows what was kept and at what cost.") { input, output, report };
        budget.AddTo(command);
        method.AddTo(command);
        foreach (Option option in (Option[])[theta, style, rotaryDim, layout, blockSize, backend, threads, json])
            command.Add(option);

        command.SetAction(parsed =>
        {
            var settings = ReadChecked(parsed.CommandResult);
            string source = parsed.GetRequiredValue(input);
            string? target = parsed.GetValue(output);
            string? folder = parsed.GetValue(report);
            if (target is not null && SameFile(source, target))
                throw new CompactorException(CompactorStatus.InvalidArgument, $"--out is '{target}', the input itself; name another file.");
            CompressionSession.Execute(source, parsed.GetValue(layout) ?? KvLayout.PackedTokens, settings, target, folder, parsed.GetValue(json));
            return CommandLine.Success;
        });
        return command;

        CompressionSettings ReadChecked(SymbolResult result)
        {
            try
            {
                return Read(result);
            }
            catch (CompactorException exception)
            {
                throw new UsageException(exception.Message, exception);
            }
        }

        CompressionSettings Read(SymbolResult result)
        {
            var options = method.Read(result);
            if (result.GetValue(theta) is { } x)
                RotaryEmbedding.FromTheta(x, result.GetValue(rotaryDim) ?? LayerShape.MaxHeadDim);
            else if (result.GetValue(rotaryDim) is not null)
                throw new UsageException("--rotary-dim describes the rotation of --rope-theta; give that too.");
            int threadCount = result.GetValue(threads) ?? 0;
            if (threadCount < 0)
                throw new UsageException($"--threads is {threadCount}; use 1 or more, or 0 for all cores.");
            int block = result.GetValue(blockSize) ?? CompressionSettings.DefaultBlockSize;
            if (block is < SmallestBlock or > LargestBlock)
                throw new UsageException($"--block-size is {block}; use {SmallestBlock} to {LargestBlock}.");
            return new CompressionSettings
            {
                Preset = method.Preset(result),
                Options = options,
                Describe = method.Describe,
                Budget = budget.Read(result),
                RopeTheta = result.GetValue(theta),
                RotaryStyle = result.GetValue(style) ?? RotaryStyle.HalfRotation,
                RotaryDim = result.GetValue(rotaryDim),
                BlockSize = block,
                Backend = result.GetValue(backend) ?? BackendChoice.Cpu,
                Threads = threadCount,
            };
        }
    }

    private static bool SameFile(string a, string b) => a.Length > 0 && b.Length > 0 && RealPath.Of(a) == RealPath.Of(b);
}
