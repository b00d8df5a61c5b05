using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>Choice of tokens, and decoding of several contexts.</summary>
public sealed class GenerationTests : IDisposable
{
    private static readonly float[] s_logits = [0.5f, 2f, -1f, 2f, 1f, float.NegativeInfinity];

    private readonly LlamaModel _model = LlamaModel.Load(TestFiles.Needle);
    private readonly CpuBackend _backend = new(1);

    [Fact]
    public void Greedy_takes_the_likeliest_and_of_equals_the_lowest() =>
        Assert.Equal(1, new Generation(new GenerationOptions()).Choose(s_logits, 7));

    [Theory]
    [InlineData(1, 1)]
    [InlineData(0.5, 1)]
    [InlineData(1, 0.7)]
    [InlineData(2, 0.95)]
    [InlineData(1, 1e-9)]
    public void Draws_follow_the_tempered_and_truncated_distribution(double temperature, double topP)
    {
        const int draws = 20_000;
        var generation = new Generation(new GenerationOptions { Temperature = temperature, TopP = topP, Seed = 42 });
        var counts = new int[s_logits.Length];
        for (int position = 0; position < draws; position++)
            counts[generation.Choose(s_logits, position)]++;

        double[] weights = [.. s_logits.Select(logit => Math.Exp(logit / temperature))];
        double total = weights.Sum(), mass = 0;
        int[] order = [.. Enumerable.Range(0, weights.Length).OrderByDescending(i => weights[i])];
        int[] nucleus = [.. order.TakeWhile(i =>
        {
            bool inside = mass < topP * total;
            mass += inside ? weights[i] : 0;
            return inside;
        })];
        for (int i = 0; i < weights.Length; i++)
        {
            double p = nucleus.Contains(i) ? weights[i] / mass : 0;
            Assert.InRange(counts[i], draws * p - 5 * Math.Sqrt(draws * p * (1 - p)), draws * p + 5 * Math.Sqrt(draws * p * (1 - p)));
        }
    }

    [Fact]
    public void The_same_seed_gives_the_same_text_and_another_seed_another()
    {
        using var engine = new Engine(_model, _backend, cacheTokens: 2048, blockSize: 16);
        using var context = engine.PrefillCompressed([[1, 20, 25, 8, 26, 16]], Budget.Retention(1))[0];
        Assert.Equal(Text(1), Text(1));
        Assert.NotEqual(Text(1), Text(2));

        int[] Text(ulong seed)
        {
            using var fork = context.Fork();
            return new Generation(new GenerationOptions { MaxTokens = 20, Temperature = 1.5, Seed = seed }).Run([fork])[0];
        }
    }

    [Fact]
    public void Contexts_of_a_batch_get_what_they_get_alone_and_have_read_it()
    {
        using var engine = new Engine(_model, _backend, cacheTokens: 4096, blockSize: 16);
        var tokenizer = TextTokenizer.Load(TestFiles.Needle);
        int[][] prompts = [[1, .. tokenizer.Encode("The sun is yellow .")], [1, .. tokenizer.Encode("Here we go . There and back")], [1, 18]];
        var options = new GenerationOptions { MaxTokens = 15, Temperature = 0.8, TopP = 0.9, Seed = 5, EndTokens = [tokenizer.Encode(".")[0]] };
        var together = engine.PrefillCompressed(prompts, Budget.Retention(1));
        int[][] texts = new Generation(options).Run(together, (i, tokens) => i == 2 && tokens.Count == 3);
        Assert.True(texts[2].Length <= 3);
        for (int b = 0; b < prompts.Length; b++)
        {
            using var alone = engine.PrefillCompressed([prompts[b]], Budget.Retention(1))[0];
            Assert.Equal(new Generation(options).Run([alone], (_, tokens) => b == 2 && tokens.Count == 3)[0], texts[b]);
            Assert.DoesNotContain(options.EndTokens[0], texts[b]);
            Assert.Equal(prompts[b].Length + texts[b].Length, together[b].Position);
            Assert.Equal(alone.Logits, together[b].Logits);
        }
    }

    [Fact]
    public void Options_out_of_range_are_named()
    {
        foreach (var (options, mention) in ((GenerationOptions, string)[])[(new() { MaxTokens = 0 }, "MaxTokens"), (new() { Temperature = -1 }, "Temperature"),
            (new() { Temperature = double.NaN }, "Temperature"), (new() { TopP = 0 }, "TopP"), (new() { TopP = 1.1 }, "TopP")])
            Assert.Contains(mention, Assert.Throws<CompactorException>(() => new Generation(options)).Message, StringComparison.Ordinal);
    }

    public void Dispose()
    {
        _backend.Dispose();
        _model.Dispose();
    }
}
