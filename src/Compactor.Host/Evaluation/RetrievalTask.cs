using Compactor.Native;

namespace Compactor.Host.Evaluation;

/// <summary>Something to ask after a context. Right is what continues the prompts with the answers, word for word.</summary>
/// <param name="Parts">Prompts and answers in turn; more than one where a question asks for several things, all of which must be right.</param>
public sealed record TaskQuestion(IReadOnlyList<(string Prompt, string Answer)> Parts)
{
    /// <summary>A question with one answer.</summary>
    public TaskQuestion(string prompt, string answer) : this([(prompt, answer)]) { }

    /// <summary>Everything that is put to the model, right answers included.</summary>
    public string Text => string.Join(' ', Parts.Select(part => $"{part.Prompt} {part.Answer}"));
}

/// <summary>A context, which alone is known when the cache is compressed, and what is asked about it afterwards.</summary>
/// <param name="Task">Name of the task.</param>
/// <param name="Seed">What it was drawn with.</param>
/// <param name="Context">The text.</param>
/// <param name="Questions">One or more questions, answered by the context.</param>
public sealed record TaskSample(string Task, ulong Seed, string Context, IReadOnlyList<TaskQuestion> Questions);

/// <summary>What needles are hidden in.</summary>
public enum Haystack
{
    /// <summary>Five sentences over and over.</summary>
    Noise,
    /// <summary>Random words, a few of them frequent.</summary>
    Essay,
    /// <summary>Noise and essay sentences.</summary>
    Mixed,
    /// <summary>Needles that are not asked for: any of them might have been.</summary>
    Keys,
}

/// <summary>
/// A retrieval task of RULER (Hsieh et al., arXiv 2404.06654) in miniature, in the bundled model's vocabulary: facts hidden in a haystack of any length, and questions about them.
/// </summary>
public sealed class RetrievalTask
{
    private readonly Haystack _haystack;
    private readonly Func<Draw, string[], Facts> _facts;

    /// <summary>Sentences that keep their order, and what is asked.</summary>
    private sealed record Facts(List<string> Sentences, TaskQuestion[] Questions);

    private RetrievalTask(string name, string description, Haystack haystack, Func<Draw, string[], Facts> facts) =>
        (Name, Description, _haystack, _facts) = (name, description, haystack, facts);

    /// <summary>Every task.</summary>
    public static IReadOnlyList<RetrievalTask> All { get; } =
    [
        new("single-noise", "one number in noise", Haystack.Noise, (draw, keys) => Numbers(draw, keys, 1, 1, 1)),
        new("single-essay", "one number in an essay", Haystack.Essay, (draw, keys) => Numbers(draw, keys, 1, 1, 1)),
        new("single-keys", "one of very many numbers", Haystack.Keys, (draw, keys) => Numbers(draw, keys, 4, 1, 4)),
        new("multi-key", "one of 8 numbers in a mixed text", Haystack.Mixed, (draw, keys) => Numbers(draw, keys, 8, 1, 4)),
        new("multi-value", "both numbers of a key", Haystack.Mixed, (draw, keys) => Numbers(draw, keys, 4, 2, 3)),
        new("multi-query", "three numbers in one question", Haystack.Mixed, MultiQuery),
        new("variables", "a variable's value through up to three assignments", Haystack.Mixed, Variables),
    ];

    /// <summary>Name on the command line.</summary>
    public string Name { get; }

    /// <summary>What is asked, in words.</summary>
    public string Description { get; }

    /// <summary>The task of a name.</summary>
    /// <exception cref="CompactorException">There is none; the message lists the names.</exception>
    public static RetrievalTask Named(string name) => All.FirstOrDefault(task => task.Name == name)
        ?? throw new CompactorException(CompactorStatus.InvalidArgument, $"There is no task '{name}'; use one of {string.Join(", ", All.Select(task => task.Name))}.");

    /// <summary>Draws a context with its questions.</summary>
    /// <param name="length">Tokens of the context and of all its questions and answers together; never exceeded.</param>
    /// <param name="seed">Seed of everything drawn.</param>
    /// <param name="tokens">Tokens of a text; the tokens of several sentences are taken to add up.</param>
    /// <exception cref="CompactorException">The length does not hold the facts and the questions.</exception>
    public TaskSample Create(int length, ulong seed, Func<string, int> tokens)
    {
        var draw = new Draw(seed);
        string[] keys = draw.Several(Sentences.Keys, Sentences.Keys.Count);
        var (facts, questions) = _facts(draw, keys);
        int left = length - questions.Sum(question => tokens(question.Text)) - facts.Sum(tokens);
        if (left < 0)
            throw new CompactorException(CompactorStatus.InvalidArgument, $"A length of {length} tokens does not hold the {length - left} of {Name}'s facts and questions; use a greater length.");
        var hay = new List<string>();
        for (string sentence = Hay(draw, keys, 0); tokens(sentence) <= left; sentence = Hay(draw, keys, hay.Count))
        {
            hay.Add(sentence);
            left -= tokens(sentence);
        }
        bool[] isFact = new bool[hay.Count + facts.Count];
        foreach (int place in draw.Several([.. Enumerable.Range(0, isFact.Length)], facts.Count))
            isFact[place] = true;
        int nextFact = 0, nextHay = 0;
        return new TaskSample(Name, seed, string.Join(' ', isFact.Select(fact => fact ? facts[nextFact++] : hay[nextHay++])), questions);
    }

    // Facts are about the first keys; the last half of them is hay.
    private string Hay(Draw draw, string[] keys, int index) => _haystack switch
    {
        Haystack.Noise => Sentences.Noise(draw),
        Haystack.Essay => Sentences.Essay(draw),
        Haystack.Mixed => draw.Below(2) == 0 ? Sentences.Noise(draw) : Sentences.Essay(draw),
        _ => Sentences.Needle(keys[keys.Length / 2 + index % (keys.Length / 2)], Sentences.Value(draw)),
    };

    private static Facts Numbers(Draw draw, string[] keys, int count, int valuesOfEach, int asked)
    {
        var (sentences, values) = Needles(draw, keys[..count], valuesOfEach);
        return new Facts(sentences, [.. keys[..asked].Select(key => valuesOfEach > 1 ? Sentences.AskNumbers(key, values[key]) : Sentences.AskNumber(key, values[key][0]))]);
    }

    private static Facts MultiQuery(Draw draw, string[] keys)
    {
        var (sentences, values) = Needles(draw, keys[..8], 1);
        return new Facts(sentences, [.. keys[..6].Chunk(3).Select(asked => new TaskQuestion([.. asked.SelectMany(key => Sentences.AskNumber(key, values[key][0]).Parts)]))]);
    }

    private static (List<string> Sentences, Dictionary<string, List<string>> Values) Needles(Draw draw, string[] keys, int valuesOfEach)
    {
        string[] order = draw.Several([.. keys.SelectMany(key => Enumerable.Repeat(key, valuesOfEach))], keys.Length * valuesOfEach);
        var values = keys.ToDictionary(key => key, _ => new List<string>());
        var sentences = new List<string>();
        foreach (string key in order)
        {
            values[key].Add(Sentences.Value(draw));
            sentences.Add(Sentences.Needle(key, values[key][^1]));
        }
        return (sentences, values);
    }

    private static Facts Variables(Draw draw, string[] keys)
    {
        const int chains = 4, hops = 3, asked = 4;
        var names = keys[..(chains * hops)].Chunk(hops).ToArray();
        string[] values = [.. names.Select(_ => Sentences.Value(draw))];
        var sentences = new List<string>();
        int[] told = new int[chains];
        foreach (int chain in draw.Several([.. Enumerable.Range(0, chains * hops)], chains * hops).Select(i => i / hops))
        {
            int hop = told[chain]++;
            sentences.Add(hop == 0 ? Sentences.Assignment(names[chain][0], values[chain]) : Sentences.Alias(names[chain][hop], names[chain][hop - 1]));
        }
        return new Facts(sentences, [.. draw.Several([.. Enumerable.Range(0, chains * hops)], asked).Select(i => Sentences.AskVariable(names[i / hops][i % hops], values[i / hops]))]);
    }
}
