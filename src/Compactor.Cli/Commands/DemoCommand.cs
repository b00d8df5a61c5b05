using System.CommandLine;
using Compactor.Native.Compression;
using Compactor.Native.Io;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor demo</c>: compresses a bundled cache, without options.</summary>
internal static class DemoCommand
{
    private const string DefaultReport = "compactor-demo-report";

    private const string Introduction =
        "The KV cache of a small language model that read 645 tokens of filler text with numbers to remember scattered in it, cut to half\n" +
        "before any question is known. Afterwards come four questions about those numbers; the errors are measured on their tokens.";

    public static Command Create()
    {
        var report = new Option<string>("--report")
        {
            Description = "Folder for a page with pictures, new or of an earlier report.",
            HelpName = "dir",
            DefaultValueFactory = _ => DefaultReport,
        };
        var json = new Option<bool>("--json") { Description = "Print one JSON document instead of a table." };
        var command = new Command("demo", "Compresses a bundled example cache; needs no options.") { report, json };
        command.SetAction(parsed =>
        {
            bool asJson = parsed.GetValue(json);
            if (!asJson)
                Console.WriteLine(Introduction);
            var settings = new CompressionSettings
            {
                Preset = "paper",
                Options = CompressionPresets.Paper,
                Describe = new MethodOptions().Describe,
                Budget = FileBudget.Retention(0.5),
            };
            CompressionSession.Execute(Path.Combine(AppContext.BaseDirectory, "Demo", "mixed.safetensors"), KvLayout.PackedTokens, settings, null, parsed.GetRequiredValue(report), asJson);
            return CommandLine.Success;
        });
        return command;
    }
}
