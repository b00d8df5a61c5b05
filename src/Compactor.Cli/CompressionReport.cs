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
/// <param name="PoolBlocks">Blocks of the paged cache it went through.</param>
internal sealed record CompressionReport(
    CompressionSettings Settings, IReadOnlyList<LayerReport> Layers, string? Probes, IReadOnlyList<string> Notes, string Backend, long PoolBlocks)
{
    private const int WidthOfStages = 150;

    public long Pairs => Layers.Sum(l => l.Pairs);

    public long KeptPairs => Layers.Sum(l => l.Plan.KeptPairs);

    private long Bytes => Layers.Sum(l => l.Bytes);

    private long KeptBytes => Layers.Sum(l => l.KeptBytes);

    public BlockUse Blocks => BlockUse.Sum(Layers.Select(l => l.Blocks));

    public double? Mean(Func<LayerErrors, double> error) =>
        Layers.Any(l => l.Errors is not null) ? Layers.Where(l => l.Errors is not null).Average(l => error(l.Errors!)) : null;

    public void Print(IAnsiConsole console)
    {
        Console.WriteLine($"{Settings.Preset} preset, {Settings.Budget}{Protection()}; blocks of {Settings.BlockSize} tokens; {Backend}");
        bool narrow = console.Profile.Width < WidthOfStages;
        string[] times = narrow ? ["Time ms"] : ["Leverage ms", "Attention ms", "Fuse ms", "Select ms", "Compact ms"];
        var table = new Table().RoundedBorder().AddColumn("Layer");
        foreach (string header in (string[])[narrow ? "Pairs" : "(Token, head) pairs", "Blocks", "Returned", "Unused slots", .. times, "Error", "Random", "Recent"])
            table.AddColumn(new TableColumn(header).RightAligned());
        foreach (var layer in Layers)
            Row(layer.Number ?? "-", layer.Pairs, layer.Plan.KeptPairs, layer.Blocks, layer.Times, layer.Errors?.Compressed, layer.Errors?.Random, layer.Errors?.Recent);
        if (Layers.Count > 1)
        {
            table.AddEmptyRow();
            Row("all", Pairs, KeptPairs, Blocks, Sum(), Mean(e => e.Compressed), Mean(e => e.Random), Mean(e => e.Recent));
        }
        console.Write(table);
        Console.WriteLine(
            $"Returned: bytes of the blocks the pool of {Units.Count(PoolBlocks)} blocks got back. Unused slots: share of the slots of taken blocks that hold no token.");
        Console.WriteLine(AboutErrors());
        Console.WriteLine(Summary());

        void Row(string name, long pairs, long kept, BlockUse blocks, StageTimes stages, double? error, double? random, double? recent) =>
            table.AddRow(
            [
                new Text(name),
                new Text($"{Units.Count(pairs)} -> {Units.Count(kept)}"),
                new Text($"{Units.Count(blocks.Before)} -> {Units.Count(blocks.After)}"),
                new Text(Units.Bytes(blocks.BytesReturned)),
                new Text($"{Units.Percent(blocks.UnusedShare.Before)} -> {Units.Percent(blocks.UnusedShare.After)}"),
                .. narrow ? [new Text(Units.Milliseconds(stages.Total))] : Stages(stages).Select(stage => new Text(Units.Milliseconds(stage.Time))),
                new Text(Units.Percent(error)),
                new Text(Units.Percent(random)),
                new Text(Units.Percent(recent)),
            ]);
    }

    /// <summary>What the errors mean, or why there are none.</summary>
    public string AboutErrors() => Probes is null
        ? "No queries in the file: how far attention outputs move cannot be measured."
        : $"Error: how far attention outputs move (relative L2, {Probes}), beside keeping as many pairs at random and as many most recent tokens.";

    /// <summary>One line that needs no table to be understood.</summary>
    public string Summary()
    {
        double share = Pairs == 0 ? 1 : (double)KeptPairs / Pairs;
        string line = $"Kept {Units.Percent(share)} of the cache ({Units.Count(KeptPairs)} of {Units.Count(Pairs)} (token, head) pairs) in blocks of {Settings.BlockSize} tokens: " +
            $"{Units.Count(Blocks.Before)} blocks became {Units.Count(Blocks.After)}, freeing {Units.Bytes(Blocks.BytesReturned)} of {Units.Bytes(Blocks.BytesTaken)}; " +
            $"{Units.Percent(Blocks.UnusedShare.After)} of the slots still taken hold no token.";
        return Mean(e => e.Compressed) is { } error
            ? $"{line} Attention outputs move by {Units.Percent(error)} on average over layers; keeping random pairs would move them by {Units.Percent(Mean(e => e.Random))}, " +
              $"the most recent tokens by {Units.Percent(Mean(e => e.Recent))}."
            : line;
    }

    public string Protection()
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

    /// <summary>Writes everything as members of a JSON object.</summary>
    /// <param name="json">The object, started.</param>
    /// <param name="input">The file compressed.</param>
    /// <param name="output">Where the result was saved, or null.</param>
    /// <param name="folder">Where the pictures are, or null.</param>
    public void WriteJson(Utf8JsonWriter json, string input, string? output, string? folder)
    {
        json.WriteString("tool", $"compactor {CompressionSettings.ToolVersion}");
        json.WriteString("backend", Backend);
        json.WriteString("input", input);
        json.WriteString("output", output);
        json.WriteString("report", folder);
        json.WriteString("preset", Settings.Preset);
        json.WriteString("budget", Settings.Budget.ToString());
        json.WriteStartObject("options");
        foreach (var (name, value) in Settings.Describe(Settings.Options))
            json.WriteString(name, value);
        json.WriteEndObject();
        json.WriteStartObject("paged_cache");
        json.WriteNumber("block_size", Settings.BlockSize);
        json.WriteNumber("pool_blocks", PoolBlocks);
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
            Amounts(layer.Pairs, layer.Plan.KeptPairs, layer.Bytes, layer.KeptBytes, layer.Blocks);
            json.WriteStartArray("kept_tokens_per_head");
            foreach (int length in layer.KeptLengths)
                json.WriteNumberValue(length);
            json.WriteEndArray();
            Times(layer.Times);
            Errors(layer.Errors?.Compressed, layer.Errors?.Random, layer.Errors?.Recent);
            if (layer.Curves is { } curves)
                Curves(curves);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteStartObject("total");
        Amounts(Pairs, KeptPairs, Bytes, KeptBytes, Blocks);
        Times(Sum());
        Errors(Mean(e => e.Compressed), Mean(e => e.Random), Mean(e => e.Recent));
        json.WriteEndObject();
        json.WriteString("summary", Summary());

        void Amounts(long pairs, long kept, long bytes, long keptBytes, BlockUse blocks)
        {
            json.WriteNumber("pairs", pairs);
            json.WriteNumber("kept_pairs", kept);
            json.WriteNumber("bytes", bytes);
            json.WriteNumber("kept_bytes", keptBytes);
            json.WriteNumber("blocks_before", blocks.Before);
            json.WriteNumber("blocks_after", blocks.After);
            json.WriteNumber("bytes_returned", blocks.BytesReturned);
            json.WriteNumber("unused_slots_before", blocks.UnusedBefore);
            json.WriteNumber("unused_slots_after", blocks.UnusedAfter);
        }

        void Times(StageTimes times)
        {
            json.WriteStartObject("milliseconds");
            foreach (var (name, time) in Stages(times))
                json.WriteNumber(name, Math.Round(time.TotalMilliseconds, 4));
            json.WriteEndObject();
        }

        void Curves(ErrorCurves curves)
        {
            json.WriteStartObject("curves");
            foreach (var (name, values) in curves.Errors.Prepend(new("kept_share", curves.KeptShare)).Prepend(new("retention", curves.Retention)))
            {
                json.WriteStartArray(name);
                foreach (double value in values)
                    json.WriteFiniteValue(value);
                json.WriteEndArray();
            }
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
