using System.Diagnostics;
using Compactor.Native.Compression.Policies;

namespace Compactor.Native.Compression;

/// <summary>
/// Maps a layer's inputs to scores; budgets, protection and top-k are the same for every policy.
/// </summary>
public abstract class SelectionPolicy
{
    /// <summary>Leverage and attention, fused; leverage alone when there are no queries.</summary>
    public static SelectionPolicy Compactor { get; } = new CompactorPolicy("compactor", useLeverage: true, useAttention: true);

    /// <summary>Leverage alone.</summary>
    public static SelectionPolicy LeverageOnly { get; } = new CompactorPolicy("leverage", useLeverage: true, useAttention: false);

    /// <summary>Non-causal attention alone; needs queries.</summary>
    public static SelectionPolicy AttentionOnly { get; } = new CompactorPolicy("attention", useLeverage: false, useAttention: true);

    /// <summary>Baseline: pairs at random.</summary>
    /// <param name="seed">Seed of the scores.</param>
    public static SelectionPolicy Random(ulong seed) => new RandomPolicy(seed);

    /// <summary>Baseline: the last tokens.</summary>
    public static SelectionPolicy Recent { get; } = new StreamingPolicy(sinks: 0);

    /// <summary>Baseline, StreamingLLM: the first 4 tokens and the last.</summary>
    public static SelectionPolicy Streaming { get; } = new StreamingPolicy(sinks: 4);

    /// <summary>Baseline, SnapKV with its published window of 32 tokens and pool of 5; needs queries.</summary>
    public static SelectionPolicy SnapKv { get; } = new SnapKvPolicy(window: 32, poolWidth: 5);

    /// <summary>Baseline, TOVA; needs queries.</summary>
    public static SelectionPolicy Tova { get; } = new TovaPolicy();

    /// <summary>Baseline, H2O; needs queries.</summary>
    public static SelectionPolicy H2O { get; } = new H2OPolicy();

    /// <summary>Baseline, KeyDiff.</summary>
    public static SelectionPolicy KeyDiff { get; } = new KeyDiffPolicy();

    /// <summary>Baseline, keys of the smallest norm.</summary>
    public static SelectionPolicy KeyNorm { get; } = new KeyNormPolicy();

    /// <summary>Every policy here, the method first.</summary>
    /// <param name="seed">Seed of <see cref="Random"/>.</param>
    public static IReadOnlyList<SelectionPolicy> All(ulong seed) =>
        [Compactor, LeverageOnly, AttentionOnly, SnapKv, H2O, Tova, KeyDiff, KeyNorm, Streaming, Recent, Random(seed)];

    /// <summary>The policy of a name.</summary>
    /// <param name="name">A <see cref="Name"/>.</param>
    /// <param name="seed">Seed of <see cref="Random"/>.</param>
    /// <exception cref="CompactorException">There is none; the message lists the names.</exception>
    public static SelectionPolicy Named(string name, ulong seed) => All(seed).FirstOrDefault(policy => policy.Name == name)
        ?? throw CompactorException.Argument($"There is no policy '{name}'; use one of {string.Join(", ", All(seed).Select(policy => policy.Name))}.");

    /// <summary>The name people see.</summary>
    public abstract string Name { get; }

    /// <summary>Fills <see cref="LayerSelection.Scores"/>, and the raw scores it used.</summary>
    /// <param name="backend">Where to compute.</param>
    /// <param name="plan">Shape, options and counts.</param>
    /// <param name="inputs">The layer's cache, checked against the plan.</param>
    /// <param name="sketch">Phi, or null to draw it.</param>
    /// <param name="selection">Receives scores and stage times.</param>
    public abstract void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, Sketch? sketch, LayerSelection selection);

    /// <summary>Whether <see cref="Score"/> ends with fusion, whose scores nothing has touched since.</summary>
    internal virtual bool EndsWithFusion => false;

    private sealed class CompactorPolicy(string name, bool useLeverage, bool useAttention) : SelectionPolicy
    {
        public override string Name => name;

        internal override bool EndsWithFusion => true;

        public override void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, Sketch? sketch, LayerSelection selection)
        {
            BufferView<float>? leverage = null, attention = null;
            long start = Stopwatch.GetTimestamp();
            if (useLeverage)
            {
                if (inputs.KeyPreRope is null && inputs.Rotary is null)
                    throw CompactorException.Argument(
                        $"Layer {plan.Shape.Layer}: leverage needs keys before RoPE. Give key_pre_rope, or the rotation to undo (RoPE theta, or cos and sin tables).");
                leverage = selection.NewLeverage();
                backend.Leverage(plan, inputs.KeyPreRope ?? inputs.Key, inputs.KeyPreRope is null ? inputs.Rotary : null,
                    sketch ?? plan.Sketch, leverage.Value);
                selection.Times.Leverage = Stopwatch.GetElapsedTime(start);
            }
            if (useAttention && inputs.Query is { } query)
            {
                start = Stopwatch.GetTimestamp();
                attention = selection.NewAttention();
                backend.AttentionScores(plan, query, inputs.Key, attention.Value);
                selection.Times.Attention = Stopwatch.GetElapsedTime(start);
            }
            else if (!useLeverage)
                throw CompactorException.Argument($"Layer {plan.Shape.Layer}: the {name} policy needs queries.");

            start = Stopwatch.GetTimestamp();
            var status = backend.Fuse(plan, leverage, attention, inputs.Value, selection.NewFused());
            selection.Times.Fuse = Stopwatch.GetElapsedTime(start);
            if (status.NonFiniteScores > 0)
                throw new CompactorException(CompactorStatus.NonFinite,
                    $"Layer {plan.Shape.Layer}: {status.NonFiniteScores} scores are not finite, the first at token {status.Token} of sequence {status.Sequence}, " +
                    $"KV head {status.Head}, though keys and queries are; their magnitudes overflow float32. Check the cache, or lower AttentionScale.");
        }
    }
}
