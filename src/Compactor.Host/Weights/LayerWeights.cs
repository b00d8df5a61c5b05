namespace Compactor.Host;

/// <summary>Weights of one decoder layer.</summary>
internal sealed class LayerWeights : IDisposable
{
    public LayerWeights(ModelConfig config, Checkpoint checkpoint, int layer, Cores cores)
    {
        string prefix = $"model.layers.{layer}.";
        int hidden = config.HiddenSize, query = config.QueryHeads * config.HeadDim, key = config.KvHeads * config.HeadDim, inner = config.IntermediateSize;
        InputNorm = ReadNorm(checkpoint, prefix + "input_layernorm.weight", hidden, config.NormEpsilon);
        Query = Linear("self_attn.q_proj", query, hidden, config.QkvBias);
        Key = Linear("self_attn.k_proj", key, hidden, config.QkvBias);
        Value = Linear("self_attn.v_proj", key, hidden, config.QkvBias);
        Output = Linear("self_attn.o_proj", hidden, query, config.OutputBias);
        if (config.QkNorm)
        {
            QueryNorm = ReadNorm(checkpoint, prefix + "self_attn.q_norm.weight", config.HeadDim, config.NormEpsilon);
            KeyNorm = ReadNorm(checkpoint, prefix + "self_attn.k_norm.weight", config.HeadDim, config.NormEpsilon);
        }
        MlpNorm = ReadNorm(checkpoint, prefix + "post_attention_layernorm.weight", hidden, config.NormEpsilon);
        Gate = Linear("mlp.gate_proj", inner, hidden, config.MlpBias);
        Up = Linear("mlp.up_proj", inner, hidden, config.MlpBias);
        Down = Linear("mlp.down_proj", hidden, inner, config.MlpBias);

        Matrix Linear(string name, int outputs, int inputs, bool bias) => new(
            checkpoint.Get($"{prefix}{name}.weight", outputs, inputs), bias ? checkpoint.Get($"{prefix}{name}.bias", outputs) : null, cores);
    }

    public Norm InputNorm { get; }

    public Matrix Query { get; }

    public Matrix Key { get; }

    public Matrix Value { get; }

    public Matrix Output { get; }

    public Norm? QueryNorm { get; }

    public Norm? KeyNorm { get; }

    public Norm MlpNorm { get; }

    public Matrix Gate { get; }

    public Matrix Up { get; }

    public Matrix Down { get; }

    public static Norm ReadNorm(Checkpoint checkpoint, string name, int size, float epsilon) => new(checkpoint.Get(name, size).ToFloat32(), epsilon);

    public void Dispose()
    {
        foreach (var matrix in (Matrix[])[Query, Key, Value, Output, Gate, Up, Down])
            matrix.Dispose();
    }
}
