using Compactor.Host.Evaluation;
using Compactor.Native.Cpu;
using Xunit;

namespace Compactor.Host.Tests.Evaluation;

/// <summary>Runs of the bundled model over short contexts.</summary>
public sealed class PolicyComparisonTests : IDisposable
{
    private const int Length = 256;

    private readonly LlamaModel _model = LlamaModel.Load(TestFiles.Needle);
    private readonly TextTokenizer _text = TextTokenizer.Load(TestFiles.Needle);

    public void Dispose() => _model.Dispose();

    private PolicyComparison Run(int threads, bool turns = false)
    {
        var plan = new ComparisonPlan([RetrievalTask.Named("multi-key"), RetrievalTask.Named("single-noise")],
            [.. ((string[])["compactor", "streaming", "random"]).Select(name => EvaluatedMethod.Named(name))], [0.5, 0.2], [1, 2], 2);
        return PolicyComparison.Run(new Trials(_model, _text, Length, turns, threads), plan, _ => { }, CancellationToken.None);
    }

    private static IEnumerable<bool> Right(PolicyComparison comparison) =>
        comparison.Contexts.SelectMany(task => task).SelectMany(context => context.Full.Right.Concat(context.Compressed.SelectMany(r => r).SelectMany(outcome => outcome.Right)));

    private static IEnumerable<double> Measured(PolicyComparison comparison) => comparison.Contexts.SelectMany(task => task)
        .SelectMany(context => context.Full.AnswerNll.Append(context.ContextNll).Concat(context.Compressed.SelectMany(r => r).SelectMany(outcome => outcome.AnswerNll)));

    [Fact]
    public void Threads_change_no_bit_and_counts_are_those_asked_for()
    {
        var (one, two) = (Run(1), Run(2));
        Assert.Equal(Right(one), Right(two));
        Assert.Equal(Measured(one), Measured(two));
        Assert.Equal(2 * 2 * (4 + 1), one.Questions);
        Assert.Equal(one.ShareOfFull(0, 1), two.ShareOfFull(0, 1));
        Assert.Equal(new Interval(0, 0, 0), one.Difference(1, 1, 0));
    }

    [Fact]
    public void All_policies_keep_as_much_and_the_full_cache_keeps_all()
    {
        var comparison = Run(2);
        Assert.All(comparison.Contexts.SelectMany(task => task), context =>
        {
            Assert.Equal(1, context.Full.KeptShare);
            for (int r = 0; r < 2; r++)
                Assert.Single(context.Compressed.Select(method => method[r].KeptShare).Distinct());
        });
        // Protected tokens come on top: 20 of about 160 to 240.
        Assert.InRange(comparison.KeptShare(0, 0), 0.55, 0.65);
    }

    [Fact]
    public void The_model_answers_from_the_full_cache_and_not_from_the_last_tokens()
    {
        var comparison = Run(2);
        Assert.True(comparison.Full().Value > 0.8);
        Assert.True(comparison.ShareOfFull(1, 1).High < 0.8, "a fifth of the cache, the last tokens, cannot hold facts that stand anywhere");
    }

    [Fact]
    public void Teacher_forcing_and_greedy_decoding_agree_on_what_is_right()
    {
        using var backend = new CpuBackend(2);
        using var engine = new Engine(_model, backend, 2048);
        var sample = RetrievalTask.Named("multi-key").Create(Length - 1, 4, text => _text.Encode(text).Length);
        using var trial = new ContextTrial(engine, _text, sample, turns: false);
        foreach (double retention in (double[])[1, 0.3, 0.1])
        {
            var outcome = trial.Run(EvaluatedMethod.Named("compactor"), retention);
            using var prefill = engine.Prefill([.. _text.Begin, .. _text.Encode(sample.Context)]);
            using var context = prefill.Compress(Native.Compression.Budget.Retention(retention), EvaluatedMethod.Named("compactor").Options);
            for (int q = 0; q < sample.Questions.Count; q++)
            {
                using var fork = context.Fork();
                var (prompt, answer) = sample.Questions[q].Parts[0];
                var said = new List<int>();
                float[] logits = fork.Extend(_text.Encode(prompt));
                foreach (int _ in _text.Encode(answer))
                {
                    said.Add(LogProbability.Best(logits));
                    logits = fork.Extend(said[^1]);
                }
                Assert.Equal(outcome.Right[q], _text.Decode(said) == answer);
            }
        }
    }

    [Fact]
    public void In_a_conversation_the_first_question_is_asked_as_if_alone()
    {
        var (alone, turns) = (Run(2), Run(2, turns: true));
        Assert.Equal(alone.Contexts.SelectMany(task => task).Select(context => context.Compressed[0][0].AnswerNll[0]),
            turns.Contexts.SelectMany(task => task).Select(context => context.Compressed[0][0].AnswerNll[0]), new Tolerance(1e-4));
        Assert.NotEqual(alone.Contexts[0].Select(context => context.Full.AnswerNll[^1]), turns.Contexts[0].Select(context => context.Full.AnswerNll[^1]));
    }

    [Fact]
    public void Cancellation_stops_a_run()
    {
        using var cancelled = new CancellationTokenSource();
        cancelled.Cancel();
        var plan = new ComparisonPlan([RetrievalTask.Named("single-noise")], [EvaluatedMethod.Named("random")], [0.5], [1], 50);
        Assert.ThrowsAny<OperationCanceledException>(() => PolicyComparison.Run(new Trials(_model, _text, Length), plan, _ => { }, cancelled.Token));
    }

    private sealed class Tolerance(double most) : IEqualityComparer<double>
    {
        public bool Equals(double a, double b) => Math.Abs(a - b) <= most;

        public int GetHashCode(double value) => 0;
    }
}
