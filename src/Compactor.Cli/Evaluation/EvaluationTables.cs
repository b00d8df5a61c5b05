using System.Globalization;
using System.Text.Json;
using Compactor.Host.Evaluation;
using Spectre.Console;

namespace Compactor.Cli.Evaluation;

/// <summary>Tables and intervals as people and programs read them.</summary>
internal static class EvaluationTables
{
    /// <summary>Prints a table of text, its first column of names.</summary>
    public static void Print(bool markdown, (string[] Headers, string[][] Rows) content)
    {
        if (markdown)
        {
            Console.WriteLine($"| {string.Join(" | ", content.Headers)} |");
            Console.WriteLine($"|{string.Concat(content.Headers.Select((_, i) => i == 0 ? "---|" : "--:|"))}");
            foreach (string[] row in content.Rows)
                Console.WriteLine($"| {string.Join(" | ", row)} |");
            Console.WriteLine();
            return;
        }
        var table = new Table().RoundedBorder().AddColumn(content.Headers[0]);
        foreach (string header in content.Headers.Skip(1))
            table.AddColumn(new TableColumn(header).RightAligned());
        foreach (string[] row in content.Rows)
            table.AddRow(row.Select(cell => new Text(cell)));
        Terminal.Output().Write(table);
    }

    /// <summary>A share as a column's head.</summary>
    public static string Retention(double retention) => string.Create(CultureInfo.InvariantCulture, $"{100 * retention:0.##}%");

    /// <summary>Percent with the interval.</summary>
    public static string Range(Interval interval) => string.Create(CultureInfo.InvariantCulture, $"{100 * interval.Value:0.0} [{100 * interval.Low:0.0}, {100 * interval.High:0.0}]");

    /// <summary>What a result depends on besides what was asked: tool, day, machine, weights, contexts.</summary>
    public static void WriteHead(Utf8JsonWriter json, Trials trials, IReadOnlyList<ulong> seeds)
    {
        json.WriteString("tool", $"compactor {CompressionSettings.ToolVersion}");
        json.WriteString("date", DateTime.UtcNow.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
        json.WriteNumber("processor_cores", Environment.ProcessorCount);
        json.WriteString("model", trials.Model.Name);
        json.WriteString("model_fingerprint", trials.Model.Fingerprint);
        json.WriteNumber("length", trials.Length);
        json.WriteStartArray("seeds");
        foreach (ulong seed in seeds)
            json.WriteNumberValue(seed);
        json.WriteEndArray();
    }

    /// <summary>An interval as an object.</summary>
    public static void Write(Utf8JsonWriter json, string name, Interval interval)
    {
        json.WriteStartObject(name);
        json.WriteFinite("value", interval.Value);
        json.WriteFinite("low", interval.Low);
        json.WriteFinite("high", interval.High);
        json.WriteEndObject();
    }
}
