using Compactor.Native;

namespace Compactor.Host;

/// <summary>A vocabulary of whole words, split at white space, joined by spaces. A word it does not have is an error: nothing stands for it.</summary>
internal sealed class WordText : TextTokenizer
{
    private readonly Dictionary<string, int> _ids;
    private readonly Dictionary<int, string> _words;
    private readonly int _known;

    public WordText(JsonFile json)
    {
        if (json.Object("pre_tokenizer").String("type") is var type && type != "WhitespaceSplit")
            throw json.Unsupported("the pre_tokenizer of words", type, "WhitespaceSplit is supported");
        if (json.Optional("normalizer") is { } normalizer)
            throw json.Unsupported("the normalizer of words", normalizer.String("type"), "none is supported");
        _ids = Vocabulary(json);
        foreach (var (word, id) in new AddedTokens(json).Ids)
            _ids[word] = id;
        // Special tokens and rows of the embedding that no word uses are written <pad>, <unused652>.
        _known = _ids.Keys.Count(word => word is not ['<', .., '>']);
        _words = _ids.ToDictionary(entry => entry.Value, entry => entry.Key);
    }

    public override int[] Encode(string text) => [.. text.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries).Select(word => _ids.TryGetValue(word, out int id) ? id
        : throw new CompactorException(CompactorStatus.InvalidArgument, $"The model knows {_known} words, separated by spaces, and '{word}' is none of them; use those its tokenizer.json lists, or another model."))];

    public override string Decode(IEnumerable<int> tokens) => string.Join(' ', tokens.Select(id => _words.TryGetValue(id, out string? word) ? word
        : throw new CompactorException(CompactorStatus.InvalidArgument, $"There is no token {id} in the model's vocabulary.")));
}
