using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>What keeping only some pairs of a layer does to attention outputs, measured with the dump's probe queries or its own last ones.</summary>
internal sealed class AttentionErrors
{
    private const int OwnProbes = 16;

    // Points that share one pass over the full cache; their outputs are held at the same time.
    private const int CurvePoints = 20, PointsAtOnce = 5;

    private readonly CpuBackend _backend;
    private readonly OutputError _error;

    private AttentionErrors(CpuBackend backend, OutputError error) => (_backend, _error) = (backend, error);

    /// <summary>What layers are measured with, in words; null when there are no queries.</summary>
    public static string? Probes(IReadOnlyList<KvDumpLayer> layers) =>
        layers.Any(l => l.ProbeQuery is not null) ? $"{layers.First(l => l.ProbeQuery is not null).ProbeQuery!.Value.Tokens} probe queries after the context"
        : layers.Any(l => l.Inputs.Query is not null) ? $"queries of each sequence's last {OwnProbes} tokens"
        : null;

    /// <summary>The measure of one layer; null when it has no queries.</summary>
    public static AttentionErrors? For(CpuBackend backend, KvDumpLayer layer, int threads)
    {
        var (shape, inputs) = (layer.Shape, layer.Inputs);
        if (layer.ProbeQuery is { } probes)
        {
            if (shape.QueryHeads != probes.Heads)
                shape = new LayerShape(shape.CuSeqlens, probes.Heads, shape.KvHeads, shape.HeadDim, shape.ElementType) { Layer = layer.Index };
            return new AttentionErrors(backend, OutputError.AfterContext(shape, inputs.Key, inputs.Value, probes, threads));
        }
        return inputs.Query is { } query
            ? new AttentionErrors(backend, OutputError.OfLastTokens(shape, inputs.Key, inputs.Value, query, OwnProbes, threads))
            : null;
    }

    /// <summary>Errors of a selection and of both baselines with as many pairs.</summary>
    /// <param name="selection">The selection.</param>
    /// <param name="inputs">What it selects from, in host memory.</param>
    public LayerErrors Of(HostSelection selection, LayerInputs inputs)
    {
        var counts = selection.Plan.WithoutProtection();
        using var random = LayerCompressor.Select(_backend, counts, inputs, SelectionPolicy.Random(selection.Plan.Options.Seed));
        using var recent = LayerCompressor.Select(_backend, counts, inputs, SelectionPolicy.Recent);
        double[] errors = _error.Of((selection.KeptIndices, selection.KeptOffsets), Kept(random), Kept(recent));
        return new LayerErrors(errors[0], errors[1], errors[2]);
    }

    /// <summary>Errors at retention 5%, 10%, ... 100%. Raw scores are those of <paramref name="selection"/>; only fusion and selection run again.</summary>
    /// <param name="selection">A selection that scored.</param>
    /// <param name="inputs">Its inputs.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    public ErrorCurves Curves(HostSelection selection, LayerInputs inputs, Action<double> progress)
    {
        var (plan, pairs) = (selection.Plan, (double)selection.Plan.Shape.Tokens * selection.Plan.Shape.KvHeads);
        // The two halves differ from the whole only where both have scores.
        (SelectionPolicy Policy, bool Protects)[] policies =
        [
            (new RawScores(SelectionPolicy.Compactor.Name, selection.Leverage, selection.Attention), true),
            .. selection.Attention is null ? [] : ((SelectionPolicy, bool)[])
            [
                (new RawScores(SelectionPolicy.LeverageOnly.Name, selection.Leverage, null), true),
                (new RawScores(SelectionPolicy.AttentionOnly.Name, null, selection.Attention), true),
            ],
            (SelectionPolicy.Random(plan.Options.Seed), false),
            (SelectionPolicy.Recent, false),
        ];
        var (retention, share) = (new double[CurvePoints], new double[CurvePoints]);
        var errors = policies.ToDictionary(p => p.Policy.Name, _ => new double[CurvePoints]);
        for (int first = 0; first < CurvePoints; first += PointsAtOnce)
        {
            var kept = new List<(ReadOnlyMemory<int>, ReadOnlyMemory<int>)>();
            for (int i = first; i < first + PointsAtOnce; i++)
            {
                retention[i] = (i + 1) / (double)CurvePoints;
                var counts = new LayerPlan(plan.Shape, plan.Options, Budget.Retention(retention[i]));
                share[i] = counts.KeptPairs / pairs;
                foreach (var (policy, protects) in policies)
                {
                    using var chosen = LayerCompressor.Select(_backend, protects ? counts : counts.WithoutProtection(), inputs, policy);
                    kept.Add(Kept(chosen));
                }
            }
            double[] measured = _error.Of([.. kept]);
            for (int i = 0; i < measured.Length; i++)
                errors[policies[i % policies.Length].Policy.Name][first + i / policies.Length] = measured[i];
            progress((double)(first + PointsAtOnce) / CurvePoints);
        }
        return new ErrorCurves(retention, share, errors);
    }

    private static (ReadOnlyMemory<int>, ReadOnlyMemory<int>) Kept(LayerSelection selection) =>
        (selection.KeptIndices.View.AsSpan().ToArray(), selection.KeptOffsets.View.AsSpan().ToArray());

    /// <summary>Raw scores that are there already, fused for whatever the plan keeps.</summary>
    private sealed class RawScores(string name, float[]? leverage, float[]? attention) : SelectionPolicy
    {
        public override string Name => name;

        public override void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, Sketch? sketch, LayerSelection selection)
        {
            using BackendBuffer<float>? o = Copy(backend, leverage), a = Copy(backend, attention);
            backend.Fuse(plan, o?.View, a?.View, inputs.Value, selection.NewFused());
        }

        private static BackendBuffer<float>? Copy(KvBackend backend, float[]? scores)
        {
            if (scores is null)
                return null;
            var buffer = backend.Allocate<float>(scores.Length);
            backend.Upload<float>(scores, buffer.View);
            return buffer;
        }
    }
}

/// <summary>Relative L2 errors of attention outputs against the full cache.</summary>
/// <param name="Compressed">Of the compressed cache.</param>
/// <param name="Random">Of as many pairs at random.</param>
/// <param name="Recent">Of as many of the last tokens.</param>
internal sealed record LayerErrors(double Compressed, double Random, double Recent);

/// <summary>Errors of several policies at a series of budgets.</summary>
/// <param name="Retention">Retention asked for.</param>
/// <param name="KeptShare">Share of (token, head) pairs kept, the same for every policy: retention and what is protected on top of it.</param>
/// <param name="Errors">Errors by the policy's name.</param>
internal sealed record ErrorCurves(double[] Retention, double[] KeptShare, IReadOnlyDictionary<string, double[]> Errors)
{
    /// <summary>Means over layers of curves measured at the same retentions with the same policies.</summary>
    public static ErrorCurves Mean(IReadOnlyList<ErrorCurves> layers) => new(layers[0].Retention,
        MeanOf(layers.Select(l => l.KeptShare)),
        layers[0].Errors.Keys.Where(policy => layers.All(l => l.Errors.ContainsKey(policy))).ToDictionary(policy => policy, policy => MeanOf(layers.Select(l => l.Errors[policy]))));

    private static double[] MeanOf(IEnumerable<double[]> series)
    {
        var all = series.ToArray();
        return [.. Enumerable.Range(0, all[0].Length).Select(i => all.Average(s => s[i]))];
    }
}
