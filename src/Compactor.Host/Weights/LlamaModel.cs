using System.Security.Cryptography;
using Compactor.Native;

namespace Compactor.Host;

/// <summary>Weights of a Llama-family decoder. Immutable once loaded: engines on several threads may share one.</summary>
public sealed class LlamaModel : IDisposable
{
    private const int FingerprintBytes = 8;

    private readonly Lazy<string> _fingerprint;

    private LlamaModel(string name, ModelConfig config, Checkpoint checkpoint, Cores cores)
    {
        (Name, Config) = (name, config);
        string[] files = checkpoint.Files;
        _fingerprint = new Lazy<string>(() => FingerprintOf(files));
        const string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
        Embedding = new Matrix(checkpoint.Get(embedding, config.VocabularySize, config.HiddenSize), null, cores);
        Layers = new LayerWeights[config.Layers];
        for (int layer = 0; layer < Layers.Length; layer++)
            Layers[layer] = new LayerWeights(config, checkpoint, layer, cores);
        FinalNorm = LayerWeights.ReadNorm(checkpoint, "model.norm.weight", config.HiddenSize, config.NormEpsilon);
        Head = config.TiedEmbeddings ? Embedding : new Matrix(checkpoint.Get(head, config.VocabularySize, config.HiddenSize), null, cores);
    }

    /// <summary>Name of the folder it was loaded from.</summary>
    public string Name { get; }

    /// <summary>
    /// Tells these weights from others: the first 16 hexadecimal digits of the SHA-256 of the checkpoint's safetensors files, one after the other in the order of their names.
    /// Files are read when it is first asked for.
    /// </summary>
    /// <exception cref="IOException">A file can no longer be read.</exception>
    public string Fingerprint => _fingerprint.Value;

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
        return new LlamaModel(Path.GetFileName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(folder))), config, checkpoint, new Cores(Environment.ProcessorCount));
    }

    /// <summary>Gives the weights' memory back. Engines must not use the model afterwards.</summary>
    public void Dispose()
    {
        Embedding.Dispose();
        foreach (var layer in Layers)
            layer.Dispose();
        Head.Dispose();
    }

    private static string FingerprintOf(string[] files)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        byte[] buffer = new byte[1 << 20];
        foreach (string path in files)
        {
            using var file = File.OpenRead(path);
            for (int read; (read = file.Read(buffer)) > 0;)
                hash.AppendData(buffer, 0, read);
        }
        return Convert.ToHexStringLower(hash.GetHashAndReset().AsSpan(0, FingerprintBytes));
    }
}
