using System.Text;
using System.Text.RegularExpressions;
using Microsoft.ML.Tokenizers;

namespace Compactor.Host;

/// <summary>
/// Byte-level byte-pair encoding as Llama 3 and Qwen use it: text is split by a regular expression, each piece's UTF-8 bytes are spelt as characters, and these are merged in
/// the order of the merge list; with <c>ignore_merges</c>, a piece that is a token itself stays whole.
/// </summary>
internal sealed partial class BytePairText : TextTokenizer
{
    private readonly BpeTokenizer _bytePairs;
    private readonly Dictionary<string, int> _vocabulary;
    private readonly AddedTokens _added;
    private readonly Regex _pieces;
    private readonly bool _normalize, _ignoreMerges;

    [GeneratedRegex(@"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")]
    private static partial Regex Gpt2Pieces { get; }

    public BytePairText(JsonFile json)
    {
        var model = json.Object("model");
        _normalize = json.Optional("normalizer")?.String("type") switch
        {
            null => false,
            "NFC" => true,
            var type => throw json.Unsupported("the normalizer", type, "NFC is supported"),
        };
        _pieces = Pieces(json);
        _ignoreMerges = model.BoolOr("ignore_merges", false);
        _vocabulary = Vocabulary(json);
        _added = new AddedTokens(json);
        _bytePairs = BpeTokenizer.Create(new BpeOptions(_vocabulary.Concat(_added.Ids.Where(token => !_vocabulary.ContainsKey(token.Key))))
        {
            Merges = Merges(json),
            ByteLevel = true,
            SpecialTokens = _added.Ids,
        });
    }

    public override int[] Encode(string text)
    {
        var ids = new List<int>();
        _added.Split(_normalize ? NormalForm.Compose(text) : text, ids.Add, plain => EncodePlain(plain, ids));
        return [.. ids];
    }

    public override string Decode(IEnumerable<int> tokens) => _bytePairs.Decode(tokens, considerSpecialTokens: true);

    /// <summary>Text without added tokens. What the expression does not match is a piece too.</summary>
    private void EncodePlain(string text, List<int> ids)
    {
        int at = 0;
        foreach (var match in _pieces.EnumerateMatches(text))
        {
            EncodePiece(text[at..match.Index], ids);
            EncodePiece(text.Substring(match.Index, match.Length), ids);
            at = match.Index + match.Length;
        }
        EncodePiece(text[at..], ids);
    }

    private void EncodePiece(string piece, List<int> ids)
    {
        if (piece.Length == 0)
            return;
        if (_ignoreMerges && _vocabulary.TryGetValue(Spell(piece), out int whole))
            ids.Add(whole);
        else
            ids.AddRange(_bytePairs.EncodeToIds(piece, considerPreTokenization: false, considerNormalization: false));
    }

    /// <summary>UTF-8 bytes as GPT-2's printable characters: those that print stand for themselves, the others follow from U+0100 on.</summary>
    private static string Spell(string piece) => string.Create(Encoding.UTF8.GetByteCount(piece), piece, (characters, text) =>
    {
        Span<byte> bytes = characters.Length <= 256 ? stackalloc byte[characters.Length] : new byte[characters.Length];
        Encoding.UTF8.GetBytes(text, bytes);
        for (int i = 0; i < bytes.Length; i++)
            characters[i] = (char)(bytes[i] switch
            {
                <= 0x20 => 0x100 + bytes[i],
                >= 0x7F and <= 0xA0 => 0x121 + bytes[i] - 0x7F,
                0xAD => 0x143,
                var printable => printable,
            });
    });

    private static Regex Pieces(JsonFile json)
    {
        var splitter = json.Object("pre_tokenizer");
        var steps = splitter.String("type") == "Sequence" ? splitter.Objects("pretokenizers") : [splitter];
        Regex? pieces = null;
        foreach (var step in steps)
            switch (step.String("type"))
            {
                case "Split" when step.String("behavior") == "Isolated" && !step.BoolOr("invert", false) && pieces is null:
                    pieces = new Regex(step.Object("pattern").String("Regex"), RegexOptions.CultureInvariant);
                    break;
                case "ByteLevel" when !step.BoolOr("add_prefix_space", true):
                    if (step.BoolOr("use_regex", true))
                        pieces = pieces is null ? Gpt2Pieces : throw json.Unsupported("the pre_tokenizer", "two expressions in sequence", "one is supported");
                    break;
                case var type:
                    throw json.Unsupported("a step of the pre_tokenizer", $"{type} {step.Element.GetRawText()}", "one Split with an isolated Regex and ByteLevel without a prefix space are supported");
            }
        return pieces ?? throw json.Unsupported("the pre_tokenizer", splitter.Element.GetRawText(), "one with an expression is supported");
    }
}
