using System.Numerics.Tensors;
using Compactor.Native;

namespace Compactor.Host;

/// <summary>The decoder layers over a packed batch of new tokens.</summary>
internal sealed unsafe class ForwardPass(LlamaModel model, KvBackend backend, Cores cores)
{
    /// <summary>Rows that one thread takes of what is computed row by row.</summary>
    private const int RowsPerItem = 16;

    private readonly ModelConfig _config = model.Config;

    /// <summary>Runs all layers.</summary>
    /// <param name="batch">New tokens, and what they continue.</param>
    /// <param name="activations">Where a layer's queries, keys and values go.</param>
    /// <param name="done">Called when a layer's attention has been computed: its keys and values may be stored, or scored and stored.</param>
    /// <returns>Residual stream after the last layer, <c>[N, hidden]</c>, before the final norm.</returns>
    public BackendBuffer<float> Run(TokenBatch batch, Func<int, LayerActivations> activations, Action<int, LayerActivations>? done)
    {
        int n = batch.Count, attended = _config.QueryHeads * _config.HeadDim;
        var residual = backend.Allocate<float>((long)n * _config.HiddenSize);
        using var normed = backend.Allocate<float>((long)n * _config.HiddenSize);
        using var attention = backend.Allocate<float>((long)n * attended);
        using var logSumExp = backend.Allocate<float>((long)n * _config.QueryHeads);
        using var gate = backend.Allocate<float>((long)n * _config.IntermediateSize);
        using var up = backend.Allocate<float>((long)n * _config.IntermediateSize);
        using var prefix = batch.Prefixes is null ? null : new PrefixAttention(_config, batch);
        var (cos, sin) = Rotations(batch.Positions);
        float* x = Pointer(residual), h = Pointer(normed), a = Pointer(attention), g = Pointer(gate), u = Pointer(up);
        for (int t = 0; t < n; t++)
            model.Embedding.CopyRow(batch.Tokens[t], new Span<float>(x + (long)t * _config.HiddenSize, _config.HiddenSize));

        for (int layer = 0; layer < model.Layers.Length; layer++)
        {
            var weights = model.Layers[layer];
            var layerActivations = activations(layer);
            float* query = (float*)layerActivations.Query.Address, keyPreRope = (float*)layerActivations.KeyPreRope.Address;
            float* key = (float*)layerActivations.Key.Address, value = (float*)layerActivations.Value.Address;

            Rows(n, (first, count) => weights.InputNorm.Apply(x + first * _config.HiddenSize, h + first * _config.HiddenSize, count));
            weights.Query.Multiply(h, n, query, cores);
            weights.Key.Multiply(h, n, keyPreRope, cores);
            weights.Value.Multiply(h, n, value, cores);
            Rows(n, (first, count) =>
            {
                long q = first * attended, k = first * _config.KvHeads * _config.HeadDim;
                weights.QueryNorm?.Apply(query + q, query + q, count * _config.QueryHeads);
                weights.KeyNorm?.Apply(keyPreRope + k, keyPreRope + k, count * _config.KvHeads);
                Rotate(query + q, query + q, first, count, _config.QueryHeads, cos, sin);
                Rotate(keyPreRope + k, key + k, first, count, _config.KvHeads, cos, sin);
            });

            CausalAttention.Run(_config, batch.CuSeqlens, query, key, value, a, Pointer(logSumExp), cores);
            prefix?.Merge(layer, query, a, Pointer(logSumExp));
            done?.Invoke(layer, layerActivations);
            weights.Output.Multiply(a, n, x, cores, accumulate: true);

            Rows(n, (first, count) => weights.MlpNorm.Apply(x + first * _config.HiddenSize, h + first * _config.HiddenSize, count));
            weights.Gate.Multiply(h, n, g, cores);
            weights.Up.Multiply(h, n, u, cores);
            Rows(n, (first, count) =>
            {
                for (long t = first; t < first + count; t++)
                    GateWith(new Span<float>(g + t * _config.IntermediateSize, _config.IntermediateSize), new Span<float>(u + t * _config.IntermediateSize, _config.IntermediateSize));
            });
            weights.Down.Multiply(u, n, x, cores, accumulate: true);
        }
        return residual;
    }

    /// <summary>Logits of rows of the residual stream.</summary>
    /// <param name="residual"><c>[N, hidden]</c> after the last layer.</param>
    /// <param name="tokens">Rows wanted.</param>
    /// <returns><c>[rows, vocabulary]</c>.</returns>
    public BackendBuffer<float> Logits(BufferView<float> residual, ReadOnlySpan<int> tokens)
    {
        int hidden = _config.HiddenSize;
        using var rows = backend.Allocate<float>((long)tokens.Length * hidden);
        for (int i = 0; i < tokens.Length; i++)
            residual.Slice((long)tokens[i] * hidden, hidden).AsSpan().CopyTo(rows.View.Slice((long)i * hidden, hidden).AsSpan());
        model.FinalNorm.Apply(Pointer(rows), Pointer(rows), tokens.Length);
        var logits = backend.Allocate<float>((long)tokens.Length * _config.VocabularySize);
        model.Head.Multiply(Pointer(rows), tokens.Length, Pointer(logits), cores);
        return logits;
    }

    private static float* Pointer(BackendBuffer<float> buffer) => (float*)buffer.View.Address;

    private void Rows(int n, Action<long, int> body) =>
        cores.For((n + RowsPerItem - 1) / RowsPerItem, item => body((long)item * RowsPerItem, Math.Min(RowsPerItem, n - item * RowsPerItem)));

    /// <summary>SiLU of the gate times the up projection, into the latter.</summary>
    private static void GateWith(Span<float> gate, Span<float> up)
    {
        TensorPrimitives.Multiply(gate, up, up);
        TensorPrimitives.Sigmoid(gate, gate);
        TensorPrimitives.Multiply(gate, up, up);
    }

    /// <summary>Cosines and sines, <c>[N, D/2]</c>.</summary>
    private (float[] Cos, float[] Sin) Rotations(int[] positions)
    {
        int pairs = _config.Rotary.RotaryDim / 2;
        Span<double> cos = stackalloc double[pairs], sin = stackalloc double[pairs];
        var (allCos, allSin) = (new float[positions.Length * pairs], new float[positions.Length * pairs]);
        for (int t = 0; t < positions.Length; t++)
        {
            _config.Rotary.Angles(positions[t], positions[t], cos, sin);
            for (int i = 0; i < pairs; i++)
                (allCos[t * pairs + i], allSin[t * pairs + i]) = ((float)cos[i], (float)sin[i]);
        }
        return (allCos, allSin);
    }

    /// <summary>Rotates heads by the position of their token: dimension i is paired with i + D/2.</summary>
    private void Rotate(float* from, float* to, long first, int count, int heads, float[] cos, float[] sin)
    {
        int dim = _config.HeadDim, pairs = dim / 2;
        for (long t = first; t < first + count; t++)
            for (int head = 0; head < heads; head++, from += dim, to += dim)
                for (int i = 0; i < pairs; i++)
                {
                    float c = cos[t * pairs + i], s = sin[t * pairs + i], x = from[i], y = from[i + pairs];
                    (to[i], to[i + pairs]) = (c * x - s * y, s * x + c * y);
                }
    }
}
