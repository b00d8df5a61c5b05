using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Host;

/// <summary>How tokens are chosen, and when to stop.</summary>
public sealed record GenerationOptions
{
    /// <summary>Most tokens to generate, 1 or more.</summary>
    public int MaxTokens { get; init; } = 64;

    /// <summary>Divides the logits before the softmax; 0 takes the likeliest token (greedy).</summary>
    public double Temperature { get; init; }

    /// <summary>Draws among the likeliest tokens that together reach this probability, above 0 to 1.</summary>
    public double TopP { get; init; } = 1;

    /// <summary>Seed of the draws. A draw depends on it and on the token's position alone.</summary>
    public ulong Seed { get; init; }

    /// <summary>Tokens that end a text; they are not part of it.</summary>
    public IReadOnlyList<int> EndTokens { get; init; } = [];

    /// <summary>Checks every option.</summary>
    /// <exception cref="CompactorException">An option is out of range; the message names it.</exception>
    public void Validate()
    {
        if (MaxTokens < 1)
            throw Argument($"MaxTokens is {MaxTokens}; use 1 or more.");
        if (!(Temperature >= 0) || double.IsInfinity(Temperature))
            throw Argument($"Temperature is {Temperature}; use 0 (greedy) or a finite number above.");
        if (!(TopP > 0 && TopP <= 1))
            throw Argument($"TopP is {TopP}; use a probability above 0, up to 1.");
    }

    private static CompactorException Argument(string message) => new(CompactorStatus.InvalidArgument, message);
}

/// <summary>Decoding of contexts, several in a batch. What a context gets does not depend on the others.</summary>
public sealed class Generation
{
    private readonly GenerationOptions _options;

    /// <summary>Checks the options.</summary>
    /// <exception cref="CompactorException">An option is out of range.</exception>
    public Generation(GenerationOptions options)
    {
        options.Validate();
        _options = options;
    }

    /// <summary>Generates until every context has reached an end token, the most tokens, or what <paramref name="stop"/> waits for. Contexts have then read their new tokens.</summary>
    /// <param name="contexts">Contexts of one engine, each once, which have read something.</param>
    /// <param name="stop">Called with the index of a context and its tokens so far, after each token; true ends its text. Null to wait for nothing.</param>
    /// <returns>New tokens of each context.</returns>
    /// <exception cref="CompactorException">A text reaches beyond the model's positions, or the cache is full; contexts keep what they have read.</exception>
    public int[][] Run(IReadOnlyList<Context> contexts, Func<int, IReadOnlyList<int>, bool>? stop = null)
    {
        var texts = new List<int>[contexts.Count];
        for (int i = 0; i < texts.Length; i++)
            texts[i] = [];
        for (int[] active = [.. Enumerable.Range(0, contexts.Count)]; active.Length > 0;)
        {
            var next = active.Select(i => (Context: i, Token: Choose(contexts[i].Logits, contexts[i].Position))).Where(choice => !_options.EndTokens.Contains(choice.Token)).ToArray();
            if (next.Length > 0)
                contexts[0].Engine.Extend([.. next.Select(choice => contexts[choice.Context])], [.. next.Select(choice => new[] { choice.Token })]);
            foreach (var (context, token) in next)
                texts[context].Add(token);
            active = [.. next.Select(choice => choice.Context).Where(i => texts[i].Count < _options.MaxTokens && stop?.Invoke(i, texts[i]) != true)];
        }
        return [.. texts.Select(text => text.ToArray())];
    }

    /// <summary>Chooses the token at a position; of equally likely ones the lowest comes first.</summary>
    internal int Choose(ReadOnlySpan<float> logits, int position)
    {
        int best = LogProbability.Best(logits);
        if (_options.Temperature == 0)
            return best;
        var tokens = new int[logits.Length];
        var weights = new double[logits.Length];
        double total = 0;
        for (int i = 0; i < tokens.Length; i++)
        {
            tokens[i] = i;
            total += weights[i] = Math.Exp(((double)logits[i] - logits[best]) / _options.Temperature);
        }
        Array.Sort(tokens, (a, b) => weights[b].CompareTo(weights[a]) is var order && order != 0 ? order : a.CompareTo(b));
        int nucleus = 0;
        double mass = 0;
        while (nucleus < tokens.Length && (nucleus == 0 || mass < _options.TopP * total))
            mass += weights[tokens[nucleus++]];

        var (high, low, _, _) = Philox.Block((uint)position, 0, 0, 0, _options.Seed);
        double drawn = (((ulong)high << 32 | low) >> 11) * (1.0 / (1L << 53)) * mass;
        for (int i = 0; i < nucleus - 1; i++)
            if ((drawn -= weights[tokens[i]]) < 0)
                return tokens[i];
        return tokens[nucleus - 1];
    }
}
