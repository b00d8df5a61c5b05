using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Host;

/// <summary>
/// Prompts that have been run, with what every layer's attention saw of them: keys before and after RoPE, queries after RoPE, values. Any number of compressed contexts
/// can be made of it.
/// </summary>
public sealed class Prefill : IDisposable
{
    /// <summary>Tokens whose logits are in memory at once.</summary>
    private const int LogitRows = 256;

    private readonly Engine _engine;
    private readonly TokenBatch _batch;
    private readonly List<LayerActivations> _layers;
    private readonly BackendBuffer<float> _residual;

    internal Prefill(Engine engine, TokenBatch batch, List<LayerActivations> layers, BackendBuffer<float> residual) =>
        (_engine, _batch, _layers, _residual) = (engine, batch, layers, residual);

    /// <summary>Prompts B.</summary>
    public int Prompts => _batch.Sequences;

    /// <summary>Packed offsets of the prompts' tokens, <c>[B+1]</c>.</summary>
    public IReadOnlyList<int> CuSeqlens => _batch.CuSeqlens;

    /// <summary>What a layer's attention saw, float32; valid while this is not disposed.</summary>
    /// <param name="layer">Layer.</param>
    public LayerInputs Inputs(int layer) => _layers[layer].Inputs;

    /// <summary>Compresses every prompt into a context of its own.</summary>
    /// <param name="budget">How much of each layer of each prompt to keep; retention 1 keeps everything and scores nothing.</param>
    /// <param name="options">Options of the method; null for <see cref="CompressionPresets.Paper"/>.</param>
    /// <param name="policy">What scores; null for <see cref="SelectionPolicy.Compactor"/>.</param>
    /// <returns>A context for each prompt.</returns>
    /// <exception cref="CompactorException">The budget cannot be met, or the cache is full; nothing of it is taken then.</exception>
    public Context[] CompressAll(Budget budget, CompressionOptions? options = null, SelectionPolicy? policy = null)
    {
        var sequences = _engine.NewSequences(Prompts);
        try
        {
            for (int layer = 0; layer < _layers.Count; layer++)
                Engine.Store(sequences, layer, _batch, _layers[layer], budget, options, policy);
            return _engine.NewContexts(_batch, sequences, _residual.View);
        }
        catch
        {
            foreach (var sequence in sequences)
                sequence.Dispose();
            throw;
        }
    }

    /// <summary>Compresses the only prompt; see <see cref="CompressAll"/>.</summary>
    /// <exception cref="CompactorException">There are several prompts, the budget cannot be met, or the cache is full.</exception>
    public Context Compress(Budget budget, CompressionOptions? options = null, SelectionPolicy? policy = null) => Prompts == 1
        ? CompressAll(budget, options, policy)[0]
        : throw new CompactorException(CompactorStatus.InvalidArgument, $"There are {Prompts} prompts; use {nameof(CompressAll)}.");

    /// <summary>Negative log-likelihood of each prompt, nats a token, over all tokens but the first, which nothing predicts; 0 for a prompt of one token.</summary>
    public double[] Nll()
    {
        var nll = new double[Prompts];
        for (int b = 0; b < nll.Length; b++)
        {
            int predicted = _batch.LengthOf(b) - 1;
            for (int first = 0; first < predicted; first += LogitRows)
            {
                int[] rows = [.. Enumerable.Range(_batch.CuSeqlens[b] + first, Math.Min(LogitRows, predicted - first))];
                using var logits = _engine.Forward.Logits(_residual.View, rows);
                int vocabulary = _engine.Model.Config.VocabularySize;
                for (int i = 0; i < rows.Length; i++)
                    nll[b] += LogProbability.Nll(logits.View.Slice((long)i * vocabulary, vocabulary).AsSpan(), _batch.Tokens[rows[i] + 1]);
            }
            nll[b] /= Math.Max(1, predicted);
        }
        return nll;
    }

    /// <summary>Logits of every token of all prompts, <c>[N, vocabulary]</c>.</summary>
    public float[] Logits()
    {
        using var logits = _engine.Forward.Logits(_residual.View, [.. Enumerable.Range(0, _batch.Count)]);
        return logits.View.AsSpan().ToArray();
    }

    /// <summary>Gives the memory back. Contexts made of it stay.</summary>
    public void Dispose()
    {
        _layers.ForEach(layer => layer.Dispose());
        _residual.Dispose();
    }
}
