using System.Text.Json;
using Compactor.Native.Compression;
using Spectre.Console;

namespace Compactor.Cli;

/// <summary>What compressing a file did, as a table or as JSON.</summary>
/// <param name="Settings">How it was compressed.</param>
/// <param name="Layers">Its layers.</param>
/// <param name="Probes">What the errors were measured with; null when there were no queries.</param>
/// <param name="Notes">What the user did not ask for and should know.</param>
/// <param name="Backend">What computed it.</param>
internal sealed record CompressionReport(
    CompressionSettings Settings, IReadOnlyList<LayerReport> Layers, string? Probes, IReadOnlyList<string> Notes, string Backend)
{
    private const int WidthOfStages = 150;

    private long Pairs => Layers.Sum(l => l.Pairs);

    private long KeptPairs => Layers.Sum(l => l.Plan.KeptPairs);

    private long Bytes => Layers.Sum(l => l.Bytes);

    private long KeptBytes => Layers.Sum(l => l.KeptBytes);

    private double? Mean(Func<LayerErrors, double> error) =>
        Layers.Any(l => l.Errors is not null) ? Layers.Where(l => l.Errors is not null).Average(l => error(l.Errors!)) : null;

    public void Print(IAnsiConsole console)
    {
        Console.WriteLine($"{Settings.Preset} preset, {Settings.Budget}{Protection()}; {Backend}");
        bool narrow = console.Profile.Width < WidthOfStages;
        string[] times = narrow ? ["Time ms"] : ["Leverage ms", "Attention ms", "Fuse ms", "Select ms", "Compact ms"];
        var table = new Table().RoundedBorder().AddColumn("Layer");
        foreach (string header in (string[])[narrow ? "Pairs" : "(Token, head) pairs", "Bytes", .. times, "Error", "Random", "Recent"])
            table.AddColumn(new TableColumn(header).RightAligned());
        foreach (var layer in Layers)
            Row(layer.Name.Length == 0 ? "-" : layer.Name.Replace("layers.", "", StringComparison.Ordinal), layer.Pairs, layer.Plan.KeptPairs, layer.Bytes, layer.KeptBytes,
                layer.Times, layer.Errors?.Compressed, layer.Errors?.Random, layer.Errors?.Recent);
        if (Layers.Count > 1)
        {
            table.AddEmptyRow();
            Row("all", Pairs, KeptPairs, Bytes, KeptBytes, Sum(), Mean(e => e.Compressed), Mean(e => e.Random), Mean(e => e.Recent));
        }
        console.Write(table);
        Console.WriteLine(Probes is null
            ? "No queries in the file: how far attention outputs move cannot be measured."
            : $"Error: how far attention outputs move (relative L2, {Probes}), beside keeping as many pairs at random and as many most recent tokens.");
        Console.WriteLine(Summary());

        void Row(string name, long pairs, long kept, long bytes, long keptBytes, StageTimes stages, double? error, double? random, double? recent) =>
            table.AddRow(
            [
                new Text(name),
                new Text($"{Units.Count(pairs)} -> {Units.Count(kept)}"),
                new Text(Units.Bytes(bytes, keptBytes)),
                .. narrow ? [new Text(Units.Milliseconds(stages.Total))] : Stages(stages).Select(stage => new Text(Units.Milliseconds(stage.Time))),
                new Text(Units.Percent(error)),
                new Text(Units.Percent(random)),
                new Text(Units.Percent(recent)),
            ]);
    }

    /// <summary>One line that needs no table to be understood.</summary>
    public string Summary()
    {
        double share = Pairs == 0 ? 1 : (double)KeptPairs / Pairs;
        string line = $"Kept {Units.Percent(share)} of the cache ({Units.Count(KeptPairs)} of {Units.Count(Pairs)} (token, head) pairs): " +
            $"{Units.Bytes(Bytes)} became {Units.Bytes(KeptBytes)}, freeing {Units.Bytes(Bytes - KeptBytes)}.";
        return Mean(e => e.Compressed) is { } error
            ? $"{line} Attention outputs move by {Units.Percent(error)} on average over layers; keeping random pairs would move them by {Units.Percent(Mean(e => e.Random))}, " +
              $"the most recent tokens by {Units.Percent(Mean(e => e.Recent))}."
            : line;
    }

    private string Protection()
    {
        var options = Settings.Options;
        if (options.ProtectFirst == 0 && options.ProtectLast == 0)
            return "";
        string place = Settings.Budget.IsRetention && options.ProtectedBudget == ProtectedBudget.OnTop ? "on top of" : "within";
        return $", {place} it the first {options.ProtectFirst} and last {options.ProtectLast} tokens of a sequence";
    }

    private StageTimes Sum() => new()
    {
        Leverage = Total(t => t.Leverage),
        Attention = Total(t => t.Attention),
        Fuse = Total(t => t.Fuse),
        Select = Total(t => t.Select),
        Compact = Total(t => t.Compact),
    };

    private TimeSpan Total(Func<StageTimes, TimeSpan> stage) => Layers.Aggregate(TimeSpan.Zero, (sum, layer) => sum + stage(layer.Times));

    public void WriteJson(Utf8JsonWriter json, string input, string? output)
    {
        json.WriteString("tool", $"compactor {CompressionSettings.ToolVersion}");
        json.WriteString("backend", Backend);
        json.WriteString("input", input);
        json.WriteString("output", output);
        json.WriteString("preset", Settings.Preset);
        json.WriteString("budget", Settings.Budget.ToString());
        json.WriteStartObject("options");
        foreach (var (name, value) in Settings.Describe(Settings.Options))
            json.WriteString(name, value);
        json.WriteEndObject();
        json.WriteString("probes", Probes);
        json.WriteStartArray("notes");
        foreach (string note in Notes)
            json.WriteStringValue(note);
        json.WriteEndArray();
        json.WriteStartArray("layers");
        foreach (var layer in Layers)
        {
            json.WriteStartObject();
            json.WriteString("name", layer.Name);
            json.WriteNumber("tokens", layer.Plan.Shape.Tokens);
            json.WriteNumber("kv_heads", layer.Plan.Shape.KvHeads);
            json.WriteNumber("head_dim", layer.Plan.Shape.HeadDim);
            json.WriteString("element_type", layer.Plan.Shape.ElementType.ToString());
            Amounts(layer.Pairs, layer.Plan.KeptPairs, layer.Bytes, layer.KeptBytes);
            json.WriteStartArray("kept_tokens_per_head");
            foreach (int length in layer.KeptLengths)
                json.WriteNumberValue(length);
            json.WriteEndArray();
            Times(layer.Times);
            Errors(layer.Errors?.Compressed, layer.Errors?.Random, layer.Errors?.Recent);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteStartObject("total");
        Amounts(Pairs, KeptPairs, Bytes, KeptBytes);
        Times(Sum());
        Errors(Mean(e => e.Compressed), Mean(e => e.Random), Mean(e => e.Recent));
        json.WriteEndObject();
        json.WriteString("summary", Summary());

        void Amounts(long pairs, long kept, long bytes, long keptBytes)
        {
            json.WriteNumber("pairs", pairs);
            json.WriteNumber("kept_pairs", kept);
            json.WriteNumber("bytes", bytes);
            json.WriteNumber("kept_bytes", keptBytes);
        }

        void Times(StageTimes times)
        {
            json.WriteStartObject("milliseconds");
            foreach (var (name, time) in Stages(times))
                json.WriteNumber(name, Math.Round(time.TotalMilliseconds, 4));
            json.WriteEndObject();
        }

        void Errors(double? error, double? random, double? recent)
        {
            json.WriteFinite("error", error);
            json.WriteFinite("error_random", random);
            json.WriteFinite("error_recent", recent);
        }
    }

    private static IEnumerable<(string Name, TimeSpan Time)> Stages(StageTimes times) =>
        [("leverage", times.Leverage), ("attention", times.Attention), ("fuse", times.Fuse), ("select", times.Select), ("compact", times.Compact)];
}
