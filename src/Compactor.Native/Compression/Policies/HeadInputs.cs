using System.Numerics.Tensors;
using Compactor.Native.Cpu;

namespace Compactor.Native.Compression.Policies;

/// <summary>Keys of one KV head of one sequence, and the queries that share it, as float32 rows. Loaded when first asked for.</summary>
public sealed class HeadInputs
{
    private readonly HeadPolicy _policy;
    private readonly LayerInputs _inputs;
    private readonly float[]?[] _queries;
    private float[]? _keys;

    internal HeadInputs(HeadPolicy policy, LayerPlan plan, LayerInputs inputs, int sequence, int head)
    {
        (_policy, Plan, _inputs, Sequence, Head) = (policy, plan, inputs, sequence, head);
        _queries = new float[]?[plan.Shape.Group];
    }

    /// <summary>Shape, options and counts.</summary>
    public LayerPlan Plan { get; }

    /// <summary>Index of the sequence.</summary>
    public int Sequence { get; }

    /// <summary>KV head.</summary>
    public int Head { get; }

    /// <summary>Tokens n of the sequence.</summary>
    public int Tokens => Plan.Shape.LengthOf(Sequence);

    /// <summary>Keys after RoPE, <c>[n, D]</c>.</summary>
    public ReadOnlySpan<float> Keys => _keys ??= Load("key", _inputs.Key, Head);

    /// <summary>The key of one token, <c>[D]</c>.</summary>
    public ReadOnlySpan<float> Key(int token) => Row(Keys, token);

    /// <summary>Adds the causal attention that one token's queries, those of all heads of the group, pay to each token up to itself: <c>softmax_j(q·k_j / sqrt(D))</c>.</summary>
    /// <param name="token">The token that asks.</param>
    /// <param name="sum"><c>[n]</c> or at least <c>[token + 1]</c>.</param>
    public void AddCausalAttention(int token, Span<float> sum)
    {
        if (_inputs.Query is not { } query)
            throw CompactorException.Argument($"Layer {Plan.Shape.Layer}: the {_policy.Name} policy needs queries.");
        var weights = new float[token + 1];
        float scale = 1 / MathF.Sqrt(Plan.Shape.HeadDim);
        for (int g = 0; g < _queries.Length; g++)
        {
            var row = Row(_queries[g] ??= Load("query", query, Head * _queries.Length + g), token);
            for (int j = 0; j <= token; j++)
                weights[j] = scale * TensorPrimitives.Dot(row, Key(j));
            TensorPrimitives.Subtract(weights, TensorPrimitives.Max<float>(weights), weights);
            TensorPrimitives.Exp<float>(weights, weights);
            TensorPrimitives.Divide(weights, TensorPrimitives.Sum<float>(weights), weights);
            TensorPrimitives.Add(weights, sum[..(token + 1)], sum);
        }
    }

    private ReadOnlySpan<float> Row(ReadOnlySpan<float> rows, int token) => rows.Slice(token * Plan.Shape.HeadDim, Plan.Shape.HeadDim);

    private unsafe float[] Load(string name, in TensorView view, int head)
    {
        var rows = new float[Tokens * view.Dim];
        fixed (float* target = rows)
            if (!RowLoader<Lanes128, System.Runtime.Intrinsics.Vector128<float>>.Load(view, Sequence, Plan.Shape.CuSeqlens[Sequence], 0, Tokens, head, target))
            {
                var found = new NonFiniteInput(Plan.Shape, name);
                found.Find(Sequence, 0, Tokens, head, target, view.Dim);
                found.ThrowIfAny();
            }
        return rows;
    }
}
