using Compactor.Native.Compression;

namespace Compactor.Host.Evaluation;

/// <summary>One context that is read once and then compressed in any number of ways, each of which is asked all its questions. No question is part of what is compressed.</summary>
public sealed class ContextTrial : IDisposable
{
    private readonly Engine _engine;
    private readonly Prefill _prefill;
    private readonly List<Question> _asked = [];

    // Of each entry of _asked, the question it is a part of.
    private readonly List<int> _questionOf = [];

    /// <summary>Reads the context.</summary>
    /// <param name="engine">Where to run.</param>
    /// <param name="text">The model's tokenizer.</param>
    /// <param name="sample">Context and questions.</param>
    /// <param name="turns">Whether questions follow each other in one conversation, right answers between them, instead of each following the context.</param>
    public ContextTrial(Engine engine, TextTokenizer text, TaskSample sample, bool turns)
    {
        (_engine, Sample) = (engine, sample);
        _prefill = engine.Prefill([.. text.Begin, .. text.Encode(sample.Context)]);
        var before = new List<int>();
        for (int q = 0; q < sample.Questions.Count; q++)
        {
            if (!turns)
                before.Clear();
            foreach (var (prompt, answer) in sample.Questions[q].Parts)
            {
                int[] tokens = text.Encode(answer);
                before.AddRange(text.Encode(prompt));
                _asked.Add(new Question([.. before], tokens));
                _questionOf.Add(q);
                before.AddRange(tokens);
            }
        }
    }

    /// <summary>Context and questions.</summary>
    public TaskSample Sample { get; }

    /// <summary>Negative log-likelihood of the context, nats a token.</summary>
    public double ContextNll => _prefill.Nll()[0];

    /// <summary>Compresses the context and asks its questions.</summary>
    /// <param name="method">How to compress.</param>
    /// <param name="retention">Share of the tokens to keep; 1 is the full cache.</param>
    public TrialOutcome Run(EvaluatedMethod method, double retention)
    {
        using var context = _prefill.Compress(Budget.Retention(retention), method.Options, method.PolicyOf(Sample.Seed));
        var scores = _engine.Score(context, _asked);
        bool[] right = new bool[Sample.Questions.Count];
        double[] nll = new double[right.Length];
        Array.Fill(right, true);
        for (int i = 0; i < scores.Length; i++)
        {
            right[_questionOf[i]] &= scores[i].Exact;
            nll[_questionOf[i]] += scores[i].Nll;
        }
        var config = _engine.Model.Config;
        return new TrialOutcome(right, nll, context.Pairs / ((double)context.Position * config.KvHeads * config.Layers));
    }

    /// <summary>Gives the memory back.</summary>
    public void Dispose() => _prefill.Dispose();
}

/// <summary>What came of a context compressed in one way.</summary>
/// <param name="Right">For each question, whether every word of every answer was right.</param>
/// <param name="AnswerNll">For each question, negative log-likelihood of the right answers, nats.</param>
/// <param name="KeptShare">Share of all (token, head) pairs that was kept, protected ones included.</param>
public sealed record TrialOutcome(bool[] Right, double[] AnswerNll, double KeptShare)
{
    /// <summary>Share of the questions answered right.</summary>
    public double Score => Right.Average(right => right ? 1.0 : 0);
}
