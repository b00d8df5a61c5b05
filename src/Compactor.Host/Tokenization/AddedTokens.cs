using System.Text.RegularExpressions;

namespace Compactor.Host;

/// <summary>Tokens that are found in a text before anything else is: <c>&lt;|im_start|&gt;</c> and the like; the longest first.</summary>
internal sealed class AddedTokens
{
    private readonly Regex? _pattern;

    public AddedTokens(JsonFile json)
    {
        var ids = new Dictionary<string, int>(StringComparer.Ordinal);
        foreach (var token in json.Objects("added_tokens"))
            ids[token.String("content")] = token.Tokens("id") is [var id] ? id : throw json.Invalid("an added token has no id");
        Ids = ids;
        if (ids.Count > 0)
            _pattern = new Regex(string.Join('|', ids.Keys.OrderByDescending(token => token.Length).Select(Regex.Escape)), RegexOptions.CultureInvariant);
    }

    public IReadOnlyDictionary<string, int> Ids { get; }

    /// <summary>Splits a text into added tokens and what is between them, in order.</summary>
    public void Split(string text, Action<int> added, Action<string> plain)
    {
        int at = 0;
        if (_pattern is not null)
            foreach (var match in _pattern.EnumerateMatches(text))
            {
                plain(text[at..match.Index]);
                added(Ids[text.Substring(match.Index, match.Length)]);
                at = match.Index + match.Length;
            }
        plain(text[at..]);
    }
}
