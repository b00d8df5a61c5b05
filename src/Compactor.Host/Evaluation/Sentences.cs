namespace Compactor.Host.Evaluation;

/// <summary>
/// The sentences of RULER's retrieval tasks (Hsieh et al., arXiv 2404.06654) in the vocabulary of the bundled model: words separated by spaces. Numbers are two words of two digits.
/// </summary>
internal static class Sentences
{
    private static readonly string[] s_noise = ["The grass is green .", "The sky is blue .", "The sun is yellow .", "Here we go .", "There and back again ."];

    private static readonly string[][] s_words = ReadWords();

    // Word i of the essay comes up in proportion to (i + 1)^-0.8.
    private static readonly double[] s_essayShares = Cumulative([.. Enumerable.Range(1, s_words[1].Length).Select(rank => Math.Pow(rank, -0.8))]);

    /// <summary>Made-up names of what can be asked for.</summary>
    public static IReadOnlyList<string> Keys => s_words[0];

    public static string Value(Draw draw) => $"{draw.Below(100):00} {draw.Below(100):00}";

    public static string Noise(Draw draw) => draw.Of(s_noise);

    public static string Essay(Draw draw) => string.Join(' ', Enumerable.Range(0, draw.Between(6, 12)).Select(_ => EssayWord(draw))) + " .";

    public static string Needle(string key, string value) => $"One special magic number for {key} is {value} .";

    public static string Assignment(string name, string value) => $"VAR {name} = {value} .";

    public static string Alias(string name, string other) => $"VAR {name} = VAR {other} .";

    public static TaskQuestion AskNumber(string key, string value) => new($"What is the special magic number for {key} ? The special magic number for {key} is", $"{value} .");

    public static TaskQuestion AskNumbers(string key, IEnumerable<string> values) =>
        new($"What are all the special magic numbers for {key} ? The special magic numbers for {key} is", string.Join(" , ", values) + " .");

    public static TaskQuestion AskVariable(string name, string value) => new($"What is VAR {name} ? VAR {name} is", $"{value} .");

    private static string EssayWord(Draw draw)
    {
        int index = Array.BinarySearch(s_essayShares, draw.Unit());
        return s_words[1][Math.Min(index < 0 ? ~index : index, s_words[1].Length - 1)];
    }

    private static double[] Cumulative(double[] weights)
    {
        double all = weights.Sum(), sum = 0;
        return [.. weights.Select(weight => (sum += weight) / all)];
    }

    private static string[][] ReadWords()
    {
        using var reader = new StreamReader(typeof(Sentences).Assembly.GetManifestResourceStream("Compactor.Host.Evaluation.words.txt")!);
        return [.. reader.ReadToEnd().ReplaceLineEndings("\n").Split("\n\n").Select(part => part.Split((char[])[' ', '\n'], StringSplitOptions.RemoveEmptyEntries))];
    }
}
