using System.Globalization;
using System.Text;
using Compactor.Native;
using Microsoft.ML.Tokenizers;

namespace Compactor.Host;

/// <summary>
/// SentencePiece's byte-pair encoding as Llama 2's <c>tokenizer.json</c> states it: spaces become U+2581, one goes before each run of text, all characters of a run may merge,
/// and a character that the vocabulary does not have is spelt by the tokens of its UTF-8 bytes.
/// </summary>
internal sealed class SentencePieceText : TextTokenizer
{
    private const char Space = '\u2581';

    private readonly Dictionary<string, int> _vocabulary;
    private readonly Dictionary<int, string> _pieces;
    private readonly Dictionary<int, byte> _bytes = [];
    private readonly int[] _byteTokens = new int[256];
    private readonly AddedTokens _added;
    private readonly BpeTokenizer _bytePairs;

    public SentencePieceText(JsonFile json)
    {
        RequireSpaces(json);
        _vocabulary = Vocabulary(json);
        _added = new AddedTokens(json);
        for (int b = 0; b < 256; b++)
        {
            string name = string.Create(CultureInfo.InvariantCulture, $"<0x{b:X2}>");
            _byteTokens[b] = _vocabulary.TryGetValue(name, out int id) ? id : throw json.Invalid($"byte_fallback is true, but the vocabulary has no '{name}'");
            _bytes[id] = (byte)b;
        }
        _bytePairs = BpeTokenizer.Create(new BpeOptions(_vocabulary) { Merges = Merges(json) });
        _pieces = _vocabulary.Concat(_added.Ids).DistinctBy(entry => entry.Value).ToDictionary(entry => entry.Value, entry => entry.Key);
    }

    public override int[] Encode(string text)
    {
        var ids = new List<int>();
        _added.Split(text, ids.Add, EncodePlain);
        return [.. ids];

        void EncodePlain(string plain)
        {
            if (plain.Length == 0)
                return;
            var run = new StringBuilder().Append(Space);
            foreach (var rune in plain.Replace(' ', Space).EnumerateRunes())
            {
                string character = rune.ToString();
                if (_vocabulary.ContainsKey(character))
                {
                    run.Append(character);
                    continue;
                }
                Flush(run);
                foreach (byte b in Encoding.UTF8.GetBytes(character))
                    ids.Add(_byteTokens[b]);
            }
            Flush(run);
        }

        void Flush(StringBuilder run)
        {
            if (run.Length > 0)
                ids.AddRange(_bytePairs.EncodeToIds(run.ToString(), considerPreTokenization: false, considerNormalization: false));
            run.Clear();
        }
    }

    public override string Decode(IEnumerable<int> tokens)
    {
        var bytes = new List<byte>();
        foreach (int token in tokens)
            if (_bytes.TryGetValue(token, out byte b))
                bytes.Add(b);
            else
                bytes.AddRange(Encoding.UTF8.GetBytes(_pieces.TryGetValue(token, out string? piece) ? piece.Replace(Space, ' ')
                    : throw new CompactorException(CompactorStatus.InvalidArgument, $"There is no token {token} in the model's vocabulary.")));
        string text = Encoding.UTF8.GetString([.. bytes]);
        return text.StartsWith(' ') ? text[1..] : text;
    }

    /// <summary>The normalizer must prepend the space mark and replace spaces by it, and nothing else may split text.</summary>
    private static void RequireSpaces(JsonFile json)
    {
        if (json.Optional("pre_tokenizer") is { } splitter)
            throw json.Unsupported("the pre_tokenizer beside byte_fallback", splitter.String("type"), "none is supported");
        var steps = json.Optional("normalizer") is { } normalizer && normalizer.String("type") == "Sequence" ? normalizer.Objects("normalizers").ToArray() : [];
        string mark = Space.ToString();
        bool known = steps is [var prepend, var replace] && prepend.String("type") == "Prepend" && prepend.String("prepend") == mark
            && replace.String("type") == "Replace" && replace.Object("pattern").StringOr("String", "") == " " && replace.String("content") == mark;
        if (!known)
            throw json.Unsupported("the normalizer beside byte_fallback", json.Optional("normalizer")?.Element.GetRawText() ?? "absent", "Llama 2's, which marks spaces by U+2581, is supported");
    }
}
