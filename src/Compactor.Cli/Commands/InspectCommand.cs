using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using Compactor.Native.Io;
using Spectre.Console;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor inspect</c>: what a safetensors file holds.</summary>
internal static class InspectCommand
{
    private const int MetadataShown = 200;

    public static Command Create()
    {
        var input = new Argument<string>("in") { Description = "A safetensors file." };
        var json = new Option<bool>("--json") { Description = "Print one JSON document." };
        var command = new Command("inspect", "Shows the tensors of a safetensors file with their statistics, and its metadata.") { input, json };
        command.SetAction(parsed =>
        {
            using var file = SafetensorsFile.Open(parsed.GetRequiredValue(input));
            (SafetensorsTensor Tensor, TensorStatistics? Statistics)[] tensors =
                [.. file.Tensors.Values.Select(t => (t, TensorStatistics.Of(t)))];
            if (parsed.GetValue(json))
                JsonDocumentWriter.Write(writer => WriteJson(writer, file, tensors));
            else
                Print(Terminal.Output(), file, tensors);
            return CommandLine.Success;
        });
        return command;
    }

    private static string Truncate(string text) => text.Length <= MetadataShown ? text : $"{text[..MetadataShown]}... ({text.Length} characters)";

    private static string Show(double? value) => value is { } x ? x.ToString("G6", CultureInfo.InvariantCulture) : "";

    private static void Print(IAnsiConsole console, SafetensorsFile file, (SafetensorsTensor, TensorStatistics?)[] tensors)
    {
        Console.WriteLine($"{file.Path}: {Units.Bytes(file.Length)}, {tensors.Length} tensors");
        var table = new Table().RoundedBorder().AddColumn("Tensor").AddColumn("Type").AddColumn("Shape");
        foreach (string header in (string[])["Min", "Max", "Mean", "Std", "NaN or inf"])
            table.AddColumn(new TableColumn(header).RightAligned());
        foreach (var (tensor, statistics) in tensors)
            table.AddRow(new Text(tensor.Name), new Text(tensor.Type.ToString()), new Text($"[{string.Join(", ", tensor.Shape)}]"),
                new Text(Show(statistics?.Min)), new Text(Show(statistics?.Max)), new Text(Show(statistics?.Mean)), new Text(Show(statistics?.Std)),
                new Text(statistics is null ? "" : Units.Count(statistics.NonFinite)));
        console.Write(table);
        foreach (var (key, value) in file.Metadata)
            Console.WriteLine($"{key}: {Truncate(value)}");
    }

    private static void WriteJson(Utf8JsonWriter json, SafetensorsFile file, (SafetensorsTensor, TensorStatistics?)[] tensors)
    {
        json.WriteString("file", file.Path);
        json.WriteNumber("bytes", file.Length);
        json.WriteStartArray("tensors");
        foreach (var (tensor, statistics) in tensors)
        {
            json.WriteStartObject();
            json.WriteString("name", tensor.Name);
            json.WriteString("dtype", tensor.Type.ToString());
            json.WriteStartArray("shape");
            foreach (long dimension in tensor.Shape)
                json.WriteNumberValue(dimension);
            json.WriteEndArray();
            json.WriteFinite("min", statistics?.Min);
            json.WriteFinite("max", statistics?.Max);
            json.WriteFinite("mean", statistics?.Mean);
            json.WriteFinite("std", statistics?.Std);
            json.WriteFinite("non_finite", statistics?.NonFinite);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteStartObject("metadata");
        foreach (var (key, value) in file.Metadata)
            json.WriteString(key, Truncate(value));
        json.WriteEndObject();
    }
}
