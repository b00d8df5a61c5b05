using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Numerics;
using Compactor.Host.Evaluation;
using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>The options of the method on the command line, each a field of <see cref="CompressionOptions"/> that changes a preset.</summary>
internal sealed class MethodOptions
{
    private const string DefaultPreset = "paper", Seed = "seed";

    private readonly Option<string?> _preset = new("--preset")
    {
        Description = "Parameterisation to start from. [default: paper]",
        Arity = ArgumentArity.ExactlyOne,
    };

    private readonly List<Field> _fields = [];

    // Not a bool: the parser takes only true and false as the value of a bool option.
    private enum Divisor { Biased, Unbiased }

    private sealed record Field(Option Option, Func<SymbolResult, CompressionOptions, CompressionOptions> Apply, Func<CompressionOptions, string> Show);

    public MethodOptions()
    {
        _preset.AcceptOnlyFromAmong([.. CompressionPresets.ByName.Keys]);
        (string, NormalizationScope)[] scopes = [("head", NormalizationScope.Head), ("sequence", NormalizationScope.Sequence), ("chunk", NormalizationScope.Chunk)];
        (string, bool)[] yesNo = [("true", true), ("false", false)];

        Number<int>("--sketch", "Columns k of the sketch: 16 to 128 in steps of 16.", o => o.SketchDimension, (o, v) => o with { SketchDimension = v });
        Choice("--sketch-sharing", "What shares a sketch: everything, the heads of a layer, or nothing.", o => o.SketchSharing, (o, v) => o with { SketchSharing = v },
            ("shared", SketchSharing.Shared), ("layer", SketchSharing.PerLayer), ("sequence-head", SketchSharing.PerSequenceHead));
        Choice("--center", "Subtract the mean key before sketching.", o => o.CenterKeys, (o, v) => o with { CenterKeys = v }, yesNo);
        Number<int>("--leverage-chunk", "Tokens of a leverage chunk: 64 to 4096, or 0 for the whole sequence.", o => o.LeverageChunk, (o, v) => o with { LeverageChunk = v });
        Number<double>("--eps", "Ridge added to the Gram matrix.", o => o.Epsilon, (o, v) => o with { Epsilon = v }, "x");
        Choice("--leverage-scope", "What leverage is normalised over.", o => o.LeverageScope, (o, v) => o with { LeverageScope = v }, scopes);
        Number<int>("--attention-chunk", "Tokens of an attention chunk: 64 to 512.", o => o.AttentionChunk, (o, v) => o with { AttentionChunk = v });
        Number<double>("--attention-scale", "Multiplier of q·k before the softmax.", o => o.AttentionScale, (o, v) => o with { AttentionScale = v }, "x");
        Choice("--group", "How query heads that share a KV head combine.", o => o.GroupReduction, (o, v) => o with { GroupReduction = v },
            ("sum", GroupReduction.Sum), ("mean", GroupReduction.Mean));
        Choice("--value-norm", "Weight attention scores by the norm of the value.", o => o.WeightByValueNorm, (o, v) => o with { WeightByValueNorm = v }, yesNo);
        Number<int>("--pool", "Width of the mean pool over tokens: odd, 1 for none.", o => o.PoolWidth, (o, v) => o with { PoolWidth = v });
        Choice("--attention-scope", "What attention is normalised over.", o => o.AttentionScope, (o, v) => o with { AttentionScope = v }, scopes);
        Choice("--std", "Whether deviations divide by n or by n - 1.",
            o => o.UnbiasedStandardDeviation ? Divisor.Unbiased : Divisor.Biased, (o, v) => o with { UnbiasedStandardDeviation = v == Divisor.Unbiased },
            ("biased", Divisor.Biased), ("unbiased", Divisor.Unbiased));
        Number<double>("--std-floor", "Lower bound of a standard deviation.", o => o.StandardDeviationFloor, (o, v) => o with { StandardDeviationFloor = v }, "x");
        Add(ValueOption.Create<LeverageWeight>("--lambda", "Weight of leverage beside attention; auto is 1 - retention.", "x|auto", "a number or auto", ParseWeight),
            (o, v) => o with { LeverageWeight = v }, o => o.LeverageWeight.Fixed is { } weight ? Text(weight) : "auto");
        Number<int>("--protect-first", "Tokens at the start of a sequence that are always kept.", o => o.ProtectFirst, (o, v) => o with { ProtectFirst = v });
        Number<int>("--protect-last", "Tokens at the end of a sequence that are always kept.", o => o.ProtectLast, (o, v) => o with { ProtectLast = v });
        Choice("--score-protected", "Whether protected tokens take part in scoring.", o => o.ScoreProtected, (o, v) => o with { ScoreProtected = v }, yesNo);
        Choice("--protected", "Whether protected tokens come out of a --retention budget.", o => o.ProtectedBudget, (o, v) => o with { ProtectedBudget = v },
            ("inside", ProtectedBudget.Inside), ("on-top", ProtectedBudget.OnTop));
        Choice("--scope", "What competes: all heads of a sequence, each head by itself, or tokens for all heads.", o => o.SelectionScope, (o, v) => o with { SelectionScope = v },
            ("sequence", SelectionScope.Sequence), ("head", SelectionScope.Head), ("token", SelectionScope.Token));
        Choice("--count", "How --retention becomes a count.", o => o.RetentionCount, (o, v) => o with { RetentionCount = v },
            ("ceil", RetentionCount.CeilingOfTokens), ("floor", RetentionCount.FloorOfTokens), ("round-unprotected", RetentionCount.RoundOfUnprotected));
        Number<int>("--min-tokens-per-head", "Tokens every head keeps at least.", o => o.MinTokensPerHead, (o, v) => o with { MinTokensPerHead = v });
        Number<ulong>("--" + Seed, "Seed of the sketches.", o => o.Seed, (o, v) => o with { Seed = v });
    }

    public void AddTo(Command command)
    {
        command.Add(_preset);
        foreach (var field in _fields)
            command.Add(field.Option);
    }

    public string Preset(SymbolResult result) => result.GetValue(_preset) ?? DefaultPreset;

    /// <summary>The preset with what the command line changes, checked.</summary>
    public CompressionOptions Read(SymbolResult result)
    {
        var options = _fields.Aggregate(CompressionPresets.ByName[Preset(result)], (o, field) => field.Apply(result, o));
        options.Validate();
        return options;
    }

    /// <summary>Every option as its command-line name, without dashes, and value.</summary>
    public IEnumerable<(string Name, string Value)> Describe(CompressionOptions options) =>
        _fields.Select(field => (field.Option.Name.TrimStart('-'), field.Show(options)));

    /// <summary>A method as one line, equal for equal methods: its policy and every option of it. The seed of the sketches is left out, which changes no more than chance does.</summary>
    public string Line(EvaluatedMethod method) =>
        string.Join(' ', Describe(method.Options).Where(option => option.Name != Seed).Select(option => $"{option.Name}={option.Value}").Prepend(method.PolicyOf(0).Name));

    private void Number<T>(string name, string description, Func<CompressionOptions, T> get, Func<CompressionOptions, T, CompressionOptions> set, string helpName = "n")
        where T : struct, INumberBase<T> =>
        Add(ValueOption.Number<T>(name, description, helpName), set, o => Text(get(o)));

    private void Choice<T>(string name, string description, Func<CompressionOptions, T> get, Func<CompressionOptions, T, CompressionOptions> set,
        params (string Name, T Value)[] choices) where T : struct =>
        Add(ValueOption.Choice(name, description, choices), set, o => choices.Single(c => c.Value.Equals(get(o))).Name);

    private void Add<T>(Option<T?> option, Func<CompressionOptions, T, CompressionOptions> set, Func<CompressionOptions, string> show) where T : struct =>
        _fields.Add(new Field(option, (result, options) => result.GetValue(option) is { } value ? set(options, value) : options, show));

    private static LeverageWeight? ParseWeight(string text) =>
        text == "auto" ? Native.Compression.LeverageWeight.OneMinusRetention
        : double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double weight) ? weight : null;

    private static string Text(IFormattable value) => value.ToString(null, CultureInfo.InvariantCulture);
}
