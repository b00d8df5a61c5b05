using System.Globalization;
using System.Text;

namespace Compactor.Host;

/// <summary>
/// Unicode's normal form C (UAX #15): decompose, order marks by their class, compose. Its table is its own because <see cref="string.Normalize()"/> leaves text as it is
/// where globalization is invariant, as it is in this product, which needs no ICU on the machine.
/// </summary>
internal static class NormalForm
{
    private const int HangulSyllable = 0xAC00, HangulLead = 0x1100, HangulVowel = 0x1161, HangulTail = 0x11A7, Leads = 19, Vowels = 21, Tails = 28;

    /// <summary>Everything below is in normal form whatever stands beside it.</summary>
    private const char FirstMark = '\u0300';

    private static readonly Lazy<Table> s_table = new(() => new Table());

    /// <summary>A text in normal form C.</summary>
    public static string Compose(string text)
    {
        if (!text.AsSpan().ContainsAnyInRange(FirstMark, char.MaxValue))
            return text;
        var table = s_table.Value;
        var runes = new List<int>(text.Length);
        foreach (var rune in text.EnumerateRunes())
            Decompose(table, rune.Value, runes);
        Order(table, runes);

        var result = new List<int>(runes.Count);
        int starter = -1, lastClass = 0;
        foreach (int rune in runes)
        {
            int markClass = table.Class(rune);
            bool blocked = starter < 0 || (result.Count - 1 > starter && lastClass >= markClass);
            if (!blocked && Pair(table, result[starter], rune) is { } composed)
            {
                result[starter] = composed;
                continue;
            }
            if (markClass == 0)
                starter = result.Count;
            lastClass = markClass;
            result.Add(rune);
        }
        var builder = new StringBuilder(result.Count);
        foreach (int rune in result)
            builder.Append(new Rune(rune).ToString());
        return builder.ToString();
    }

    private static void Decompose(Table table, int rune, List<int> into)
    {
        int syllable = rune - HangulSyllable;
        if (syllable is >= 0 and < Leads * Vowels * Tails)
        {
            into.Add(HangulLead + syllable / (Vowels * Tails));
            into.Add(HangulVowel + syllable / Tails % Vowels);
            if (syllable % Tails != 0)
                into.Add(HangulTail + syllable % Tails);
        }
        else if (table.Decompositions.TryGetValue(rune, out int[]? parts))
            foreach (int part in parts)
                Decompose(table, part, into);
        else
            into.Add(rune);
    }

    /// <summary>Marks between starters ascend by class; equal ones stay in order.</summary>
    private static void Order(Table table, List<int> runes)
    {
        for (int i = 1; i < runes.Count; i++)
            for (int j = i; j > 0 && table.Class(runes[j]) is var markClass && markClass != 0 && table.Class(runes[j - 1]) > markClass; j--)
                (runes[j - 1], runes[j]) = (runes[j], runes[j - 1]);
    }

    private static int? Pair(Table table, int first, int second)
    {
        if (first - HangulLead is >= 0 and < Leads and var lead && second - HangulVowel is >= 0 and < Vowels and var vowel)
            return HangulSyllable + (lead * Vowels + vowel) * Tails;
        if (first - HangulSyllable is >= 0 and < Leads * Vowels * Tails and var syllable && syllable % Tails == 0 && second - HangulTail is > 0 and < Tails and var tail)
            return first + tail;
        return table.Compositions.TryGetValue((first, second), out int composed) ? composed : null;
    }

    private sealed class Table
    {
        private readonly Dictionary<int, byte> _classes = [];

        public Table()
        {
            using var reader = new StreamReader(typeof(NormalForm).Assembly.GetManifestResourceStream("Compactor.Host.Tokenization.canonical.txt")!);
            while (reader.ReadLine() is { } line)
            {
                int at = line.AsSpan().IndexOfAny('=', '>', '-');
                int code = Hex(line[..at]);
                if (line[at] == '-')
                {
                    string[] range = line[(at + 1)..].Split(':');
                    for (int c = code; c <= Hex(range[0]); c++)
                        _classes[c] = byte.Parse(range[1], CultureInfo.InvariantCulture);
                    continue;
                }
                int[] parts = Decompositions[code] = [.. line[(at + 1)..].Split(' ').Select(Hex)];
                if (line[at] == '=')
                    Compositions[(parts[0], parts[1])] = code;
            }
        }

        public Dictionary<int, int[]> Decompositions { get; } = [];

        public Dictionary<(int, int), int> Compositions { get; } = [];

        public int Class(int rune) => _classes.GetValueOrDefault(rune);

        private static int Hex(string text) => int.Parse(text, NumberStyles.HexNumber, CultureInfo.InvariantCulture);
    }
}
