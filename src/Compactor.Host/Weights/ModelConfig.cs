using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Host;

/// <summary>
/// Shape of a Llama-family decoder, read from a Hugging Face <c>config.json</c>: Llama 2 and 3.x, Qwen2 and 2.5 (biases of q, k and v), Qwen3 (RMS norms of q and k heads).
/// </summary>
public sealed record ModelConfig
{
    /// <summary>Width of the residual stream.</summary>
    public required int HiddenSize { get; init; }

    /// <summary>Width of the MLP.</summary>
    public required int IntermediateSize { get; init; }

    /// <summary>Layers.</summary>
    public required int Layers { get; init; }

    /// <summary>Query heads Hq.</summary>
    public required int QueryHeads { get; init; }

    /// <summary>KV heads Hkv.</summary>
    public required int KvHeads { get; init; }

    /// <summary>Head dimension D.</summary>
    public required int HeadDim { get; init; }

    /// <summary>Tokens of the vocabulary.</summary>
    public required int VocabularySize { get; init; }

    /// <summary>Added to the mean square in RMS norms.</summary>
    public required float NormEpsilon { get; init; }

    /// <summary>Positions the model was trained for.</summary>
    public required int MaxPositions { get; init; }

    /// <summary>Whether the output matrix is the embedding.</summary>
    public required bool TiedEmbeddings { get; init; }

    /// <summary>Whether q, k and v projections have biases.</summary>
    public required bool QkvBias { get; init; }

    /// <summary>Whether the attention's output projection has a bias.</summary>
    public required bool OutputBias { get; init; }

    /// <summary>Whether the MLP's projections have biases.</summary>
    public required bool MlpBias { get; init; }

    /// <summary>Whether each query and key head passes an RMS norm before its rotation.</summary>
    public required bool QkNorm { get; init; }

    /// <summary>Rotation of queries and keys, scaling included.</summary>
    public required RotaryEmbedding Rotary { get; init; }

    /// <summary>Tokens that end a text.</summary>
    public IReadOnlyList<int> EndTokens { get; init; } = [];

    /// <summary>Reads and checks a <c>config.json</c>.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="CompactorException">The file is missing or malformed, or asks for something this engine does not compute; the message names it.</exception>
    public static ModelConfig Load(string path)
    {
        using var document = JsonFile.Open(path);
        var json = new JsonFile(path, document.RootElement);
        string type = json.String("model_type");
        if (type is not ("llama" or "qwen2" or "qwen3"))
            throw json.Unsupported("model_type", type, "llama, qwen2 and qwen3 are supported");
        if (json.Optional("quantization_config") is not null)
            throw json.Unsupported("quantization_config", "present", "use a checkpoint in F32, F16 or BF16");
        if (json.StringOr("hidden_act", "silu") is var activation && activation != "silu")
            throw json.Unsupported("hidden_act", activation, "silu is supported");
        if (json.BoolOr("use_sliding_window", false))
            throw json.Unsupported("use_sliding_window", "true", "models whose layers all attend to everything are supported");

        int hidden = json.Positive("hidden_size"), heads = json.Positive("num_attention_heads");
        int kvHeads = json.PositiveOr("num_key_value_heads", heads);
        int headDim = json.PositiveOr("head_dim", hidden / heads);
        if (heads % kvHeads != 0)
            throw json.Invalid($"num_attention_heads is {heads} and num_key_value_heads {kvHeads}; the first must be a multiple of the second");
        bool attentionBias = json.BoolOr("attention_bias", false);
        var shape = new LayerShape([0], heads, kvHeads, headDim, ElementType.Float32);
        return new ModelConfig
        {
            HiddenSize = hidden,
            IntermediateSize = json.Positive("intermediate_size"),
            Layers = json.Positive("num_hidden_layers"),
            QueryHeads = shape.QueryHeads,
            KvHeads = shape.KvHeads,
            HeadDim = shape.HeadDim,
            VocabularySize = json.Positive("vocab_size"),
            NormEpsilon = (float)json.DoubleOr("rms_norm_eps", 1e-6),
            MaxPositions = json.PositiveOr("max_position_embeddings", 2048),
            TiedEmbeddings = json.BoolOr("tie_word_embeddings", false),
            QkvBias = type == "qwen2" || attentionBias,
            OutputBias = type != "qwen2" && attentionBias,
            MlpBias = json.BoolOr("mlp_bias", false),
            QkNorm = type == "qwen3",
            Rotary = RotaryScaling.Read(json, headDim),
            EndTokens = json.Tokens("eos_token_id"),
        };
    }
}
