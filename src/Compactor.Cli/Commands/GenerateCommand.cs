using System.CommandLine;
using System.CommandLine.Parsing;
using Compactor.Host;
using Compactor.Host.Evaluation;
using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor generate</c>: a model reads a prompt, its cache is compressed once, and questions are answered from what is left.</summary>
internal static class GenerateCommand
{
    public static Command Create()
    {
        var model = new Option<string?>("--model") { Description = "Folder of a checkpoint: config.json, tokenizer.json, safetensors. [default: the bundled model]", HelpName = "dir" };
        var prompt = new Option<string>("--prompt") { Description = "Text file to read before anything is asked.", HelpName = "file", Required = true };
        var question = new Option<string[]>("--question") { Description = "Asked of the compressed prompt; several are asked independently. The prompt is continued without one.", HelpName = "text" };
        var retention = ValueOption.Number<double>("--retention", "Share of the tokens to keep, 0 to 1. [default: 0.5]", "r");
        var quality = ValueOption.Number<double>("--quality", "Quality to keep, 0 to 1: the prompt decides by its likelihood what retention that takes.", "tau");
        var calibration = new Option<string?>("--calibration") { Description = "Calibration that --quality uses. [default: calibration.json in the model's folder]", HelpName = "file" };
        var maxTokens = ValueOption.Number<int>("--max-tokens", "Most tokens of an answer. [default: 64]");
        var stop = new Option<string?>("--stop") { Description = "Text that ends an answer.", HelpName = "text" };
        var temperature = ValueOption.Number<double>("--temperature", "Divisor of the logits; 0 takes the likeliest token. [default: 0]", "x");
        var topP = ValueOption.Number<double>("--top-p", "Draw among the likeliest tokens of this probability together. [default: 1]", "p");
        var samplingSeed = ValueOption.Number<ulong>("--sampling-seed", "Seed of the draws. [default: 0]");
        var threads = ValueOption.Number<int>("--threads", "Threads; 0 for all cores. Results do not depend on it. [default: 0]");
        var json = new Option<bool>("--json") { Description = "Print one JSON document instead of text." };
        var method = new MethodOptions();

        var command = new Command("generate", "Lets a model read a prompt, compresses its cache, and answers questions from what is left.")
        {
            model, prompt, question, retention, quality, calibration, maxTokens, stop, temperature, topP, samplingSeed, threads, json,
        };
        method.AddTo(command);
        command.SetAction(parsed =>
        {
            GenerationSession.Execute(Read(parsed.CommandResult), parsed.GetValue(json));
            return CommandLine.Success;
        });
        return command;

        GenerationRequest Read(SymbolResult result)
        {
            if (result.GetValue(retention) is not null && result.GetValue(quality) is not null)
                throw new UsageException("--retention and --quality exclude each other; give one of them.");
            if (result.GetValue(quality) is null && result.GetValue(calibration) is not null)
                throw new UsageException("--calibration is what --quality uses; give that too.");
            foreach (var (name, share) in ((string, double?)[])[("--retention", result.GetValue(retention)), ("--quality", result.GetValue(quality))])
                if (share is { } given && !(given is >= 0 and <= 1))
                    throw new UsageException($"{name} is {given}; use a share from 0 to 1.");
            if (result.GetValue(maxTokens) is < 1)
                throw new UsageException($"--max-tokens is {result.GetValue(maxTokens)}; use 1 or more.");
            if (result.GetValue(temperature) is { } divisor && !(divisor >= 0 && double.IsFinite(divisor)))
                throw new UsageException($"--temperature is {divisor}; use 0 (the likeliest token) or a finite number above.");
            if (result.GetValue(topP) is { } probability && !(probability is > 0 and <= 1))
                throw new UsageException($"--top-p is {probability}; use a probability above 0, up to 1.");
            if (result.GetValue(stop) is "")
                throw new UsageException("--stop is empty; give the text that ends an answer, or leave it out.");
            if (result.GetValue(threads) is < 0)
                throw new UsageException($"--threads is {result.GetValue(threads)}; use 1 or more, or 0 for all cores.");
            try
            {
                var generation = new GenerationOptions
                {
                    MaxTokens = result.GetValue(maxTokens) ?? new GenerationOptions().MaxTokens,
                    Temperature = result.GetValue(temperature) ?? 0,
                    TopP = result.GetValue(topP) ?? 1,
                    Seed = result.GetValue(samplingSeed) ?? 0,
                };
                var options = method.Read(result);
                return new GenerationRequest
                {
                    Model = result.GetValue(model) ?? GenerationRequest.BundledModel,
                    Prompt = result.GetRequiredValue(prompt),
                    Questions = result.GetValue(question) ?? [],
                    Retention = result.GetValue(quality) is null ? result.GetValue(retention) ?? 0.5 : null,
                    Quality = result.GetValue(quality),
                    Calibration = result.GetValue(calibration),
                    Options = options,
                    Method = method.Line(EvaluatedMethod.Named(SelectionPolicy.Compactor.Name, options)),
                    Generation = generation,
                    Stop = result.GetValue(stop),
                    Threads = result.GetValue(threads) ?? 0,
                };
            }
            catch (CompactorException exception)
            {
                throw new UsageException(exception.Message, exception);
            }
        }
    }
}
