using Compactor.Native;

namespace Compactor.Host;

/// <summary>Weights of a Llama-family decoder. Immutable once loaded: engines on several threads may share one.</summary>
public sealed class LlamaModel : IDisposable
{
    private LlamaModel(ModelConfig config, Checkpoint checkpoint, Cores cores)
    {
        Config = config;
        const string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
        Embedding = new Matrix(checkpoint.Get(embedding, config.VocabularySize, config.HiddenSize), null, cores);
        Layers = new LayerWeights[config.Layers];
        for (int layer = 0; layer < Layers.Length; layer++)
            Layers[layer] = new LayerWeights(config, checkpoint, layer, cores);
        FinalNorm = LayerWeights.ReadNorm(checkpoint, "model.norm.weight", config.HiddenSize, config.NormEpsilon);
        Head = config.TiedEmbeddings ? Embedding : new Matrix(checkpoint.Get(head, config.VocabularySize, config.HiddenSize), null, cores);
    }

    /// <summary>Shape and parameters.</summary>
    public ModelConfig Config { get; }

    internal Matrix Embedding { get; }

    internal LayerWeights[] Layers { get; }

    internal Norm FinalNorm { get; }

    internal Matrix Head { get; }

    /// <summary>Loads a checkpoint in Hugging Face layout: <c>config.json</c> and safetensors, one file or several with an index.</summary>
    /// <param name="folder">Folder of the checkpoint.</param>
    /// <exception cref="CompactorException">
    /// A file is missing or malformed, a tensor is missing or has another shape than <c>config.json</c> makes it, or the architecture is not supported; the message names which.
    /// </exception>
    public static LlamaModel Load(string folder)
    {
        var config = ModelConfig.Load(Path.Combine(folder, "config.json"));
        using var checkpoint = new Checkpoint(folder);
        return new LlamaModel(config, checkpoint, new Cores(Environment.ProcessorCount));
    }

    /// <summary>Gives the weights' memory back. Engines must not use the model afterwards.</summary>
    public void Dispose()
    {
        Embedding.Dispose();
        foreach (var layer in Layers)
            layer.Dispose();
        Head.Dispose();
    }
}
