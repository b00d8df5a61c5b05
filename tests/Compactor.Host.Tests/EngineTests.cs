using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>What compressed contexts promise: batches, forks, scores and full caches agree with each other.</summary>
public sealed class EngineTests : IDisposable
{
    private readonly LlamaModel _model = LlamaModel.Load(TestFiles.Needle);
    private readonly CpuBackend _backend = new(2);
    private readonly Engine _engine;
    private readonly int[] _tokens;

    public EngineTests()
    {
        using var golden = SafetensorsFile.Open(TestFiles.Data("needle_logits.safetensors"));
        _tokens = golden.Tensors["input_ids"].ToInt32();
        _engine = new Engine(_model, _backend, cacheTokens: 8192, blockSize: 32);
    }

    public static TheoryData<string, double> Compressions { get; } = new()
    {
        { "paper", 1 }, { "paper", 0.5 }, { "paper", 0.1 }, { "kvpress", 0.3 }, { "compactor-vllm", 0.4 },
    };

    [Fact]
    public void Decoding_at_retention_1_chooses_what_a_full_forward_pass_chooses()
    {
        const int start = 450, count = 12;
        using var prefill = _engine.Prefill(_tokens[..start]);
        using var context = prefill.Compress(Budget.Retention(1));
        int[] decoded = new Generation(new GenerationOptions { MaxTokens = count }).Run([context])[0];

        var text = _tokens[..start].ToList();
        for (int i = 0; i < count; i++)
        {
            using var whole = _engine.Prefill(text.ToArray());
            text.Add(LogProbability.Best(whole.Logits().AsSpan()[^_model.Config.VocabularySize..]));
        }
        Assert.Equal(text[start..], decoded);
    }

    [Theory]
    [MemberData(nameof(Compressions))]
    public void A_batch_gives_each_prompt_what_it_gets_alone(string preset, double retention)
    {
        var options = CompressionPresets.ByName[preset];
        int[][] prompts = [_tokens[..300], _tokens[50..97], _tokens[..1], _tokens[100..400]], next = [_tokens[300..310], _tokens[97..98], _tokens[1..30], _tokens[400..405]];
        var together = _engine.PrefillCompressed(prompts, Budget.Retention(retention), options);
        float[][] logits = _engine.Extend(together, next);
        for (int b = 0; b < prompts.Length; b++)
        {
            using var alone = _engine.PrefillCompressed([prompts[b]], Budget.Retention(retention), options)[0];
            Assert.Equal(alone.Pairs + next[b].Length * _model.Config.Layers * _model.Config.KvHeads, together[b].Pairs);
            Assert.Equal(alone.Extend(next[b]), logits[b]);
        }
        Array.ForEach(together, context => context.Dispose());
        Assert.Equal(_engine.Cache.Blocks, _engine.Cache.FreeBlocks);
    }

    [Theory]
    [MemberData(nameof(Compressions))]
    public void Compressing_layer_by_layer_keeps_what_compressing_afterwards_keeps(string preset, double retention)
    {
        var options = CompressionPresets.ByName[preset];
        using var prefill = _engine.Prefill(_tokens[..400]);
        using var afterwards = prefill.Compress(Budget.Retention(retention), options);
        using var during = _engine.PrefillCompressed([_tokens[..400]], Budget.Retention(retention), options)[0];
        for (int layer = 0; layer < _model.Config.Layers; layer++)
            for (int head = 0; head < _model.Config.KvHeads; head++)
            {
                var (positions, keys, values) = during.Sequence.Read(layer, head);
                var expected = afterwards.Sequence.Read(layer, head);
                Assert.Equal(expected.Positions, positions);
                Assert.Equal(expected.Keys, keys);
                Assert.Equal(expected.Values, values);
            }
        Assert.Equal(afterwards.Logits, during.Logits);
    }

    [Fact]
    public void Results_do_not_depend_on_the_number_of_threads()
    {
        using var oneThread = new CpuBackend(1);
        using var engine = new Engine(_model, oneThread, cacheTokens: 2048, blockSize: 32);
        using var one = engine.PrefillCompressed([_tokens[..400]], Budget.Retention(0.3))[0];
        using var two = _engine.PrefillCompressed([_tokens[..400]], Budget.Retention(0.3))[0];
        Assert.Equal(one.Logits, two.Logits);
        Assert.Equal(one.Extend(_tokens[400..420]), two.Extend(_tokens[400..420]));
    }

    [Fact]
    public void A_fork_goes_on_as_its_origin_would_and_leaves_it_alone()
    {
        using var origin = _engine.PrefillCompressed([_tokens[..300]], Budget.Retention(0.4))[0];
        using var recomputed = _engine.PrefillCompressed([_tokens[..300]], Budget.Retention(0.4))[0];
        int free = _engine.Cache.FreeBlocks;
        using (var fork = origin.Fork())
        {
            Assert.True(free - _engine.Cache.FreeBlocks <= _model.Config.Layers * _model.Config.KvHeads);
            fork.Extend(_tokens[0..40]);
            Assert.Equal(300, origin.Position);
            Assert.Equal(340, fork.Position);
            using var other = origin.Fork();
            Assert.Equal(recomputed.Extend(_tokens[300..333]), other.Extend(_tokens[300..333]));
        }
        Assert.Equal(recomputed.Logits, origin.Extend(_tokens[300..333]));
    }

    [Fact]
    public void Scores_of_many_questions_are_those_of_forks_that_are_asked_one_by_one()
    {
        using var context = _engine.PrefillCompressed([_tokens[..440]], Budget.Retention(0.5))[0];
        Question[] questions = [new(_tokens[440..450], _tokens[450..453]), new(_tokens[20..21], _tokens[21..22]), new(_tokens[470..490], _tokens[490..495]), new(_tokens[440..450], [4, 5])];
        int free = _engine.Cache.FreeBlocks;
        float[] before = context.Logits.ToArray();
        var scores = _engine.Score(context, questions);
        Assert.Equal((free, 440), (_engine.Cache.FreeBlocks, context.Position));
        Assert.Equal(before, context.Logits);

        for (int i = 0; i < questions.Length; i++)
        {
            using var fork = context.Fork();
            var (nll, greedy) = (0.0, new List<int>());
            float[] logits = fork.Extend(questions[i].Tokens);
            foreach (int token in questions[i].Answer)
            {
                nll += LogProbability.Nll(logits, token);
                greedy.Add(LogProbability.Best(logits));
                logits = fork.Extend(token);
            }
            Assert.Equal(nll, scores[i].Nll, 1e-4);
            Assert.Equal(greedy, scores[i].Greedy);
            Assert.Equal(greedy.SequenceEqual(questions[i].Answer), scores[i].Exact);
        }
    }

    [Fact]
    public void The_likelihood_of_a_prompt_is_that_of_its_logits()
    {
        using var prefill = _engine.Prefill(_tokens[..300], _tokens[..1], _tokens[..20]);
        float[] logits = prefill.Logits();
        int vocabulary = _model.Config.VocabularySize;
        double expected = 0;
        for (int t = 0; t < 299; t++)
        {
            var row = logits.AsSpan(t * vocabulary, vocabulary).ToArray().Select(logit => (double)logit).ToArray();
            expected += Math.Log(row.Sum(Math.Exp)) - row[_tokens[t + 1]];
        }
        double[] nll = prefill.Nll();
        Assert.Equal(expected / 299, nll[0], 1e-6);
        Assert.Equal(0, nll[1]);
        Assert.True(nll[2] > 0);
    }

    [Fact]
    public void Recompressing_a_context_drops_more_of_it()
    {
        using var context = _engine.PrefillCompressed([_tokens[..400]], Budget.Retention(0.6))[0];
        long before = context.Pairs;
        for (int layer = 0; layer < _model.Config.Layers; layer++)
        {
            var shape = Native.Paging.CacheCompressor.HeldShape([context.Sequence], layer);
            using var pending = Native.Paging.CacheCompressor.Recompress([context.Sequence], layer, new LayerPlan(shape, CompressionPresets.Paper, Budget.Retention(0.5)), _model.Config.Rotary);
            pending.Complete();
        }
        Assert.InRange(context.Pairs, before / 2, before * 2 / 3);
        Assert.All(context.Extend(_tokens[400..410]), logit => Assert.True(float.IsFinite(logit)));
    }

    [Fact]
    public void A_full_cache_is_an_error_that_changes_no_context()
    {
        using var engine = new Engine(_model, _backend, cacheTokens: 96, blockSize: 32);
        using var context = engine.PrefillCompressed([_tokens[..40]], Budget.Retention(1))[0];
        using var other = engine.PrefillCompressed([_tokens[..8]], Budget.Retention(1))[0];
        float[] logits = context.Logits.ToArray();
        var exception = Assert.Throws<CompactorException>(() => engine.Extend([other, context], [_tokens[8..10], _tokens[40..70]]));
        Assert.Equal(CompactorStatus.OutOfBlocks, exception.Status);
        Assert.Equal((40, 8), (context.Position, other.Position));
        Assert.Equal(logits, context.Logits);
        Assert.Equal(40, context.Sequence.Lengths(0)[0]);
        using var whole = _engine.PrefillCompressed([_tokens[..40]], Budget.Retention(1))[0];
        Assert.Equal(whole.Extend(_tokens[40..45]), context.Extend(_tokens[40..45]));
        Assert.Equal(CompactorStatus.OutOfBlocks, Assert.Throws<CompactorException>(() => engine.PrefillCompressed([_tokens[..60]], Budget.Retention(1))).Status);
    }

    [Fact]
    public void Wrong_tokens_and_contexts_are_named()
    {
        using var context = _engine.PrefillCompressed([_tokens[..40]], Budget.Retention(1))[0];
        using var engine = new Engine(_model, _backend, cacheTokens: 64, blockSize: 16);
        Fails("empty", () => _engine.Prefill([[]]));
        Fails("no prompts", () => _engine.Prefill([]));
        Fails("no token 704", () => context.Extend(704));
        Fails("no token -1", () => _engine.Prefill([-1]));
        Fails("1024 positions", () => _engine.Prefill(new int[1025]));
        Fails("1024 positions", () => context.Extend(new int[985]));
        Fails("another engine", () => engine.Extend([context], [[1]]));
        Fails("twice", () => _engine.Extend([context, context], [[1], [1]]));
        Fails("for 2", () => _engine.Extend([context], [[1], [1]]));
        Fails("empty", () => _engine.Score(context, [new Question([1], [])]));
        Fails("empty", () => _engine.Score(context, [new Question([], [1])]));
        Assert.Equal(40, context.Position);

        static void Fails(string mention, Action action) => Assert.Contains(mention, Assert.Throws<CompactorException>(action).Message, StringComparison.Ordinal);
    }

    public void Dispose()
    {
        _engine.Dispose();
        _backend.Dispose();
        _model.Dispose();
    }
}
