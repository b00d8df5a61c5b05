using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using Compactor.Host;
using Compactor.Host.Evaluation;
using Compactor.Native;

namespace Compactor.Cli.Evaluation;

/// <summary>What <c>eval</c> and <c>calibrate</c> have in common: the model, and how contexts are drawn.</summary>
/// <param name="seeds">Seeds of the contexts where none are given.</param>
internal sealed class EvaluationOptions(params ulong[] seeds)
{
    private const int DefaultLength = 1024;

    private readonly Option<string?> _model = new("--model") { Description = "Folder of a checkpoint in Hugging Face layout. [default: the bundled model]", HelpName = "dir" };
    private readonly Option<int?> _length = ValueOption.Number<int>("--length", $"Tokens of a context with its questions and answers. [default: {DefaultLength}]");
    private readonly Option<string?> _seeds = new("--seeds") { Description = $"Seeds of the contexts. [default: {string.Join(',', seeds)}]", HelpName = "s,s,..." };
    private readonly Option<int?> _threads = ValueOption.Number<int>("--threads", "Threads; 0 for all cores. Results do not depend on it. [default: 0]");

    /// <summary>Folder of the report.</summary>
    public Option<string?> Report { get; } = new("--report") { Description = "Folder for a page with pictures and figures, new or of an earlier report.", HelpName = "dir" };

    /// <summary>Whether figures are JSON.</summary>
    public Option<bool> Json { get; } = new("--json") { Description = "Print one JSON document instead of tables." };

    /// <summary>Whether tables are Markdown.</summary>
    public Option<bool> Markdown { get; } = new("--markdown") { Description = "Print tables as Markdown." };

    public void AddTo(Command command)
    {
        foreach (Option option in (Option[])[_model, _length, _seeds, _threads, Report, Json, Markdown])
            command.Add(option);
    }

    /// <summary>Seeds of the contexts.</summary>
    public ulong[] Seeds(SymbolResult result) => result.GetValue(_seeds) is not { } text ? seeds
        : List(text, "--seeds", part => ulong.TryParse(part, CultureInfo.InvariantCulture, out ulong seed) ? seed : throw new UsageException($"--seeds holds '{part}'; use whole numbers, 0 or more, separated by commas."));

    /// <summary>The model and its contexts; whoever calls owns the model.</summary>
    public Trials Load(SymbolResult result, bool turns)
    {
        string folder = result.GetValue(_model) ?? GenerationRequest.BundledModel;
        int length = result.GetValue(_length) ?? DefaultLength, threads = result.GetValue(_threads) ?? 0;
        if (threads < 0)
            throw new UsageException($"--threads is {threads}; use 1 or more, or 0 for all cores.");
        var text = TextTokenizer.Load(folder);
        var model = LlamaModel.Load(folder);
        if (length >= 1 && length <= model.Config.MaxPositions)
            return new Trials(model, text, length, turns, threads);
        model.Dispose();
        throw new UsageException($"--length is {length}; the model reads 1 to {model.Config.MaxPositions} tokens.");
    }

    /// <summary>Tasks by name; all of them when none is named.</summary>
    public static RetrievalTask[] Tasks(string? names, string option) => names is null ? [.. RetrievalTask.All] : List(names, option, name => OfUser(() => RetrievalTask.Named(name)));

    /// <summary>Retentions.</summary>
    public static double[] Retentions(string text, string option) => List(text, option, part =>
        double.TryParse(part, NumberStyles.Float, CultureInfo.InvariantCulture, out double retention) && retention is > 0 and <= 1 ? retention
        : throw new UsageException($"{option} holds '{part}'; use ratios above 0, up to 1, separated by commas."));

    /// <summary>Different things separated by commas.</summary>
    public static T[] List<T>(string text, string option, Func<string, T> parse)
    {
        string[] parts = text.Split(',', StringSplitOptions.TrimEntries);
        if (parts.GroupBy(part => part).FirstOrDefault(group => group.Count() > 1) is { } twice)
            throw new UsageException($"{option} holds '{twice.Key}' twice.");
        return [.. parts.Select(parse)];
    }

    /// <summary>Reads something whose failure is the command line's.</summary>
    public static T OfUser<T>(Func<T> read)
    {
        try
        {
            return read();
        }
        catch (CompactorException exception)
        {
            throw new UsageException(exception.Message, exception);
        }
    }

    /// <summary>A number of contexts.</summary>
    public static int Count(int? value, string option, int standard) => value is null ? standard
        : value >= 1 ? value.Value : throw new UsageException($"{option} is {value}; use 1 or more.");
}
