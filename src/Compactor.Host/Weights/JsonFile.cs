using System.Globalization;
using System.Text.Json;
using Compactor.Native;

namespace Compactor.Host;

/// <summary>An object of a JSON file, whose errors name the file and the field.</summary>
internal sealed class JsonFile(string path, JsonElement element)
{
    /// <summary>Parses a file.</summary>
    /// <exception cref="CompactorException">It cannot be read or is no JSON object.</exception>
    public static JsonDocument Open(string path)
    {
        try
        {
            var document = JsonDocument.Parse(File.ReadAllBytes(path));
            if (document.RootElement.ValueKind == JsonValueKind.Object)
                return document;
            document.Dispose();
            throw new CompactorException(CompactorStatus.InvalidFile, $"{path}: it is not a JSON object.");
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' does not exist; give the folder of a checkpoint in Hugging Face layout.", e);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or JsonException)
        {
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' cannot be read: {e.Message}", e);
        }
    }

    public JsonElement Element => element;

    /// <summary>An object within, or null where it is absent or null.</summary>
    public JsonFile? Optional(string name) => Find(name) is not { } value ? null
        : value.ValueKind == JsonValueKind.Object ? new JsonFile(path, value) : throw Wrong(name, value, "an object");

    /// <summary>Objects of an array; none where the field is absent or null.</summary>
    public IEnumerable<JsonFile> Objects(string name)
    {
        if (Find(name) is not { } value)
            return [];
        if (value.ValueKind != JsonValueKind.Array || value.EnumerateArray().Any(item => item.ValueKind != JsonValueKind.Object))
            throw Wrong(name, value, "a list of objects");
        return value.EnumerateArray().Select(item => new JsonFile(path, item));
    }

    public JsonFile Object(string name) => Optional(name) ?? throw Missing(name);

    public string String(string name) => Find(name) is not { } value ? throw Missing(name)
        : value.ValueKind == JsonValueKind.String ? value.GetString()! : throw Wrong(name, value, "a string");

    public string StringOr(string name, string otherwise) => Find(name) is null ? otherwise : String(name);

    public bool BoolOr(string name, bool otherwise) => Find(name) is not { } value ? otherwise
        : value.ValueKind is JsonValueKind.True or JsonValueKind.False ? value.GetBoolean() : throw Wrong(name, value, "true or false");

    public double Double(string name) => Find(name) is not { } value ? throw Missing(name)
        : value.ValueKind == JsonValueKind.Number && value.GetDouble() is >= 0 and < double.PositiveInfinity and var number ? number : throw Wrong(name, value, "a number, 0 or more");

    public double DoubleOr(string name, double otherwise) => Find(name) is null ? otherwise : Double(name);

    public int Positive(string name) => Find(name) is not { } value ? throw Missing(name)
        : value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out int number) && number > 0 ? number : throw Wrong(name, value, "a whole number above 0");

    public int PositiveOr(string name, int otherwise) => Find(name) is null ? otherwise : Positive(name);

    /// <summary>A token id or several; none where the field is absent or null.</summary>
    public int[] Tokens(string name)
    {
        if (Find(name) is not { } value)
            return [];
        return value.ValueKind == JsonValueKind.Array ? [.. value.EnumerateArray().Select(Token)] : [Token(value)];

        int Token(JsonElement id) => id.ValueKind == JsonValueKind.Number && id.TryGetInt32(out int token) && token >= 0
            ? token : throw Wrong(name, id, "token ids");
    }

    public CompactorException Invalid(string problem) => new(CompactorStatus.InvalidFile, $"{path}: {problem}.");

    public CompactorException Unsupported(string name, object value, string use) =>
        new(CompactorStatus.Unsupported, string.Create(CultureInfo.InvariantCulture, $"{path}: {name} is {value}, which this engine does not compute; {use}."));

    private JsonElement? Find(string name) =>
        element.TryGetProperty(name, out var value) && value.ValueKind != JsonValueKind.Null ? value : null;

    private CompactorException Missing(string name) => Invalid($"{name} is missing");

    private CompactorException Wrong(string name, JsonElement value, string expected) => Invalid($"{name} is {value.GetRawText()}; expected {expected}");
}
