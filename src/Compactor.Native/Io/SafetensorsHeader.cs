using System.Buffers;
using System.Text;
using System.Text.Json;

namespace Compactor.Native.Io;

/// <summary>
/// The JSON header of a safetensors file: <c>{ name: { dtype, shape, data_offsets: [begin, end) }, ..., "__metadata__": { text: text } }</c>,
/// offsets counted from the first byte after the header. As the official implementation does, it ignores unknown fields of a tensor and
/// refuses data that overlaps, has holes or is followed by more bytes; beyond it, it refuses repeated names and misaligned tensors.
/// </summary>
internal sealed class SafetensorsHeader
{
    /// <summary>Longest header in bytes, as in the official implementation.</summary>
    public const int MaxLength = 100_000_000;

    /// <summary>Most dimensions of a tensor, as in PyTorch and NumPy.</summary>
    public const int MaxRank = 64;

    /// <summary>Name under which the header keeps its text metadata.</summary>
    public const string MetadataName = "__metadata__";

    private readonly string _path;
    private readonly HashSet<string> _names = new(StringComparer.Ordinal);

    /// <summary>Reads a header and checks each tensor on its own.</summary>
    /// <param name="path">Names the file in errors.</param>
    /// <param name="json">The header, at least one byte.</param>
    /// <exception cref="CompactorException">The header is malformed.</exception>
    public SafetensorsHeader(string path, ReadOnlySpan<byte> json)
    {
        _path = path;
        if (json[0] != '{')
            throw Invalid($"the header starts with byte 0x{json[0]:X2}; a safetensors header is a JSON object and starts with '{{'.");
        int valid = 0;
        while (Rune.DecodeFromUtf8(json[valid..], out _, out int bytes) == OperationStatus.Done)
            valid += bytes;
        if (valid < json.Length)
            throw Invalid($"the header is not UTF-8: byte 0x{json[valid]:X2} at position {valid} begins no character.");
        var reader = new Utf8JsonReader(json);
        try
        {
            reader.Read();
            for (reader.Read(); reader.TokenType != JsonTokenType.EndObject; reader.Read())
            {
                string name = Text(ref reader);
                if (!_names.Add(name))
                    throw Invalid($"the header names {Quote(name)} twice; names must be unique.");
                reader.Read();
                if (name == MetadataName)
                    ReadMetadata(ref reader);
                else
                    Tensors.Add(ReadTensor(ref reader, name));
            }
        }
        catch (JsonException e)
        {
            throw Invalid($"the header is not valid JSON: {e.Message}", e);
        }
        int end = (int)reader.BytesConsumed;
        int garbage = json[end..].IndexOfAnyExcept((byte)' ');
        if (garbage >= 0)
            throw Invalid($"byte 0x{json[end + garbage]:X2} follows the JSON object at position {end + garbage} of the header; only padding with spaces may.");
    }

    /// <summary>Tensors in the order of the header; in that of their data after <see cref="CheckLayout"/>.</summary>
    public List<Entry> Tensors { get; } = [];

    /// <summary>Text metadata; empty when the header has none.</summary>
    public Dictionary<string, string> Metadata { get; } = new(StringComparer.Ordinal);

    /// <summary>Checks that the tensors tile the data exactly, each aligned to its elements, and sorts them by offset.</summary>
    /// <param name="dataStart">Offset of the data in the file.</param>
    /// <param name="dataLength">Bytes of data.</param>
    /// <exception cref="CompactorException">They do not.</exception>
    public void CheckLayout(long dataStart, long dataLength)
    {
        Tensors.Sort((a, b) => (a.Begin, a.End).CompareTo((b.Begin, b.End)));
        long expected = 0;
        string previous = "";
        foreach (var tensor in Tensors)
        {
            string described = $"tensor {Quote(tensor.Name)} at data_offsets [{tensor.Begin}, {tensor.End}]";
            if (tensor.End > dataLength)
                throw Invalid($"{described} reaches beyond the end of the file, which holds {dataLength} bytes of data; the file is truncated or the header wrong.");
            if (tensor.Begin < expected)
                throw Invalid($"{described} overlaps {Quote(previous)}, which ends at {expected}.");
            if (tensor.Begin > expected)
                throw Invalid($"{described} leaves a hole: bytes {expected} to {tensor.Begin} belong to no tensor.");
            if ((dataStart + tensor.Begin) % tensor.Type.Size() != 0)
                throw Invalid(
                    $"{described} is misaligned: its file offset {dataStart + tensor.Begin} is not a multiple of the {tensor.Type.Size()} bytes of {tensor.Type}. " +
                    "Rewrite the file with a header padded to a multiple of 8 bytes and tensors ordered by descending element size.");
            (expected, previous) = (tensor.End, tensor.Name);
        }
        if (expected != dataLength)
            throw Invalid($"{dataLength - expected} bytes follow the last tensor's data, which ends at {expected} of {dataLength}; the header must account for every byte.");
    }

    /// <summary>Bytes of a tensor, or null when shape and size exceed 63 bits. Dimensions of 0 do not hide an overflow of the others.</summary>
    public static long? ByteLength(SafetensorsType type, ReadOnlySpan<long> shape)
    {
        long bytes = type.Size();
        bool empty = false;
        foreach (long dimension in shape)
        {
            empty |= dimension == 0;
            if (dimension > 0 && bytes > long.MaxValue / dimension)
                return null;
            bytes *= Math.Max(1, dimension);
        }
        return empty ? 0 : bytes;
    }

    /// <summary>A name for an error message, shortened and free of control characters.</summary>
    public static string Quote(string name)
    {
        string shown = name.Length <= 120 ? name : name[..120] + "...";
        return $"'{string.Concat(shown.Select(c => char.IsControl(c) ? '\uFFFD' : c))}'";
    }

    /// <summary>A shape for an error message.</summary>
    public static string Show(IEnumerable<long> shape) => $"[{string.Join(", ", shape)}]";

    private Entry ReadTensor(ref Utf8JsonReader reader, string name)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Invalid($"tensor {Quote(name)} is described by {Raw(ref reader)}; expected an object of dtype, shape and data_offsets.");
        SafetensorsType? type = null;
        long[]? shape = null, offsets = null;
        for (reader.Read(); reader.TokenType != JsonTokenType.EndObject; reader.Read())
        {
            string field = Text(ref reader);
            reader.Read();
            if (field == "dtype" && type is not null || field == "shape" && shape is not null || field == "data_offsets" && offsets is not null)
                throw Invalid($"tensor {Quote(name)} has {field} twice.");
            switch (field)
            {
                case "dtype":
                    type = ReadType(ref reader, name);
                    break;
                case "shape":
                    shape = ReadIntegers(ref reader, name, field, MaxRank);
                    break;
                case "data_offsets":
                    offsets = ReadIntegers(ref reader, name, field, 2);
                    break;
                default:
                    reader.Skip();
                    break;
            }
        }
        if (type is null || shape is null || offsets is null)
            throw Invalid($"tensor {Quote(name)} has no {(type is null ? "dtype" : shape is null ? "shape" : "data_offsets")}.");
        if (offsets.Length != 2 || offsets[1] < offsets[0])
            throw Invalid($"tensor {Quote(name)} has data_offsets {Show(offsets)}; expected [begin, end] with begin no larger than end.");
        if (ByteLength(type.Value, shape) is not { } bytes)
            throw Invalid($"tensor {Quote(name)} has shape {Show(shape)}, whose size in bytes exceeds 63 bits.");
        if (offsets[1] - offsets[0] != bytes)
            throw Invalid($"tensor {Quote(name)} has {offsets[1] - offsets[0]} bytes at data_offsets {Show(offsets)}; {type} {Show(shape)} takes {bytes}.");
        return new Entry(name, type.Value, shape, offsets[0], offsets[1]);
    }

    private SafetensorsType ReadType(ref Utf8JsonReader reader, string name) =>
        reader.TokenType == JsonTokenType.String && SafetensorsTypes.ByName.TryGetValue(Text(ref reader), out var type)
            ? type
            : throw Invalid($"tensor {Quote(name)} has dtype {Raw(ref reader)}; known are {string.Join(", ", SafetensorsTypes.ByName.Keys)}.");

    private long[] ReadIntegers(ref Utf8JsonReader reader, string name, string field, int most)
    {
        if (reader.TokenType != JsonTokenType.StartArray)
            throw Invalid($"tensor {Quote(name)} has {field} {Raw(ref reader)}; expected an array of whole numbers.");
        var values = new List<long>();
        for (reader.Read(); reader.TokenType != JsonTokenType.EndArray; reader.Read())
        {
            if (values.Count == most)
                throw Invalid($"tensor {Quote(name)} has more than {most} entries in {field}.");
            if (reader.TokenType != JsonTokenType.Number || !reader.TryGetInt64(out long value) || value < 0)
                throw Invalid($"tensor {Quote(name)} has {Raw(ref reader)} in {field}; use whole numbers from 0 to {long.MaxValue}.");
            values.Add(value);
        }
        return [.. values];
    }

    private void ReadMetadata(ref Utf8JsonReader reader)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Invalid($"{MetadataName} is {Raw(ref reader)}; expected an object of strings.");
        for (reader.Read(); reader.TokenType != JsonTokenType.EndObject; reader.Read())
        {
            string key = Text(ref reader);
            reader.Read();
            if (reader.TokenType != JsonTokenType.String)
                throw Invalid($"{MetadataName} entry {Quote(key)} is {Raw(ref reader)}; expected a string.");
            if (!Metadata.TryAdd(key, Text(ref reader)))
                throw Invalid($"{MetadataName} has {Quote(key)} twice.");
        }
    }

    private string Text(ref Utf8JsonReader reader)
    {
        try
        {
            return reader.GetString()!;
        }
        catch (InvalidOperationException e)
        {
            throw Invalid($"the string at position {reader.TokenStartIndex} of the header escapes half of a surrogate pair.", e);
        }
    }

    private static string Raw(ref Utf8JsonReader reader) => Quote(Encoding.UTF8.GetString(reader.ValueSpan[..Math.Min(reader.ValueSpan.Length, 200)]));

    private CompactorException Invalid(string problem, Exception? innerException = null) =>
        new(CompactorStatus.InvalidFile, $"{_path}: {problem}", innerException);

    /// <summary>One tensor: its data lies at <c>[Begin, End)</c> of the data.</summary>
    public readonly record struct Entry(string Name, SafetensorsType Type, long[] Shape, long Begin, long End);
}
