using System.Text.Json;
using Compactor.Native;

namespace Compactor.Host;

/// <summary>Text to tokens and back.</summary>
public abstract class TextTokenizer
{
    /// <summary>Tokens that go before a text, as the checkpoint asks.</summary>
    public IReadOnlyList<int> Begin { get; private protected init; } = [];

    /// <summary>
    /// Reads a <c>tokenizer.json</c>: byte-level byte-pair encoding (Llama 3, Qwen), SentencePiece's with byte fallback (Llama 2), or whole words split at white space.
    /// </summary>
    /// <param name="folder">Folder of the checkpoint.</param>
    /// <exception cref="CompactorException">The file is missing or malformed, or asks for something that is not supported; the message names it.</exception>
    public static TextTokenizer Load(string folder)
    {
        string path = Path.Combine(folder, "tokenizer.json");
        using var document = JsonFile.Open(path);
        var json = new JsonFile(path, document.RootElement);
        var begin = BeginTokens(json, folder);
        return json.Object("model").String("type") switch
        {
            "WordLevel" => new WordText(json) { Begin = begin },
            "BPE" when json.Object("model").BoolOr("byte_fallback", false) => new SentencePieceText(json) { Begin = begin },
            "BPE" => new BytePairText(json) { Begin = begin },
            var type => throw json.Unsupported("the model's type", type, "BPE and WordLevel are supported"),
        };
    }

    /// <summary>Tokens of a text, without <see cref="Begin"/>.</summary>
    /// <exception cref="CompactorException">The text holds something the vocabulary does not have.</exception>
    public abstract int[] Encode(string text);

    /// <summary>Text of tokens.</summary>
    public abstract string Decode(IEnumerable<int> tokens);

    private protected static Dictionary<string, int> Vocabulary(JsonFile json)
    {
        var vocab = json.Object("model").Object("vocab");
        var words = new Dictionary<string, int>(StringComparer.Ordinal);
        foreach (var entry in vocab.Element.EnumerateObject())
            words[entry.Name] = entry.Value.TryGetInt32(out int id) ? id : throw vocab.Invalid($"the id of token '{entry.Name}' is {entry.Value.GetRawText()}; expected a whole number");
        return words;
    }

    /// <summary>Merges as the two halves with a space between: older files store them so, newer ones as pairs.</summary>
    private protected static List<string> Merges(JsonFile json)
    {
        if (!json.Object("model").Element.TryGetProperty("merges", out var list) || list.ValueKind != JsonValueKind.Array)
            throw json.Invalid("the model has no list of merges");
        return [.. list.EnumerateArray().Select(merge => merge.ValueKind switch
        {
            JsonValueKind.String => merge.GetString()!,
            JsonValueKind.Array when merge.GetArrayLength() == 2 => $"{merge[0].GetString()} {merge[1].GetString()}",
            _ => throw json.Invalid($"a merge is {merge.GetRawText()}; expected two tokens"),
        })];
    }

    /// <summary>What the post-processor's template puts first; the <c>bos_token_id</c> of <c>config.json</c> where there is no post-processor.</summary>
    private static int[] BeginTokens(JsonFile json, string folder)
    {
        if (json.Optional("post_processor") is not { } processor)
        {
            string config = Path.Combine(folder, "config.json");
            using var document = JsonFile.Open(config);
            return new JsonFile(config, document.RootElement).Tokens("bos_token_id");
        }
        var steps = processor.String("type") == "Sequence" ? processor.Objects("processors") : [processor];
        if (steps.FirstOrDefault(step => step.String("type") == "TemplateProcessing") is not { } template)
            return [];
        return [.. template.Objects("single").TakeWhile(piece => piece.Optional("SpecialToken") is not null)
            .SelectMany(piece => template.Object("special_tokens").Object(piece.Object("SpecialToken").String("id")).Tokens("ids"))];
    }
}
