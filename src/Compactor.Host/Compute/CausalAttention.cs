using System.Buffers;
using System.Numerics;
using System.Numerics.Tensors;

namespace Compactor.Host;

/// <summary>
/// Causal attention of a packed batch over its own tokens: <c>out_i = sum_{j ≤ i} softmax_j(q_i·k_j / sqrt(D))·v_j</c> within each sequence, with the log-sum-exp of the
/// logits, by which it merges with attention over a cache. Blocks of keys with an online softmax; a token's result depends on its own sequence alone.
/// </summary>
internal static unsafe class CausalAttention
{
    private const int QueryTokens = 32, KeyBlock = 64;

    /// <summary>Computes a batch.</summary>
    /// <param name="config">Heads and head dimension.</param>
    /// <param name="cuSeqlens"><c>[B+1]</c>.</param>
    /// <param name="query">Queries after RoPE, <c>[N, Hq, D]</c>.</param>
    /// <param name="key">Keys after RoPE, <c>[N, Hkv, D]</c>.</param>
    /// <param name="value">Values, <c>[N, Hkv, D]</c>.</param>
    /// <param name="output">Receives <c>[N, Hq, D]</c>.</param>
    /// <param name="logSumExp">Receives <c>[N, Hq]</c>.</param>
    /// <param name="cores">What to compute with.</param>
    public static void Run(ModelConfig config, IReadOnlyList<int> cuSeqlens, float* query, float* key, float* value, float* output, float* logSumExp, Cores cores)
    {
        var items = new List<(int Start, int First, int End, int Head)>();
        for (int b = 0; b + 1 < cuSeqlens.Count; b++)
            for (int first = cuSeqlens[b]; first < cuSeqlens[b + 1]; first += QueryTokens)
                for (int head = 0; head < config.KvHeads; head++)
                    items.Add((cuSeqlens[b], first, Math.Min(first + QueryTokens, cuSeqlens[b + 1]), head));
        // The last tiles of a sequence see the most keys: they go first.
        cores.For(items.Count, i => Tile(config, items[^(i + 1)], query, key, value, output, logSumExp));
    }

    private static void Tile(ModelConfig config, (int Start, int First, int End, int Head) item, float* query, float* key, float* value, float* output, float* logSumExp)
    {
        int dim = config.HeadDim, group = config.QueryHeads / config.KvHeads, tokens = item.End - item.First, rows = tokens * group;
        int keyStride = config.KvHeads * dim, columns = MatrixTile.Columns;
        float scale = 1 / MathF.Sqrt(dim);
        float[] scratch = ArrayPool<float>.Shared.Rent(rows * (2 * dim + KeyBlock + 2) + KeyBlock * dim);
        fixed (float* queries = scratch)
        {
            float* sums = queries + rows * dim, logits = sums + rows * dim, maximum = logits + rows * KeyBlock, total = maximum + rows, keys = total + rows;
            for (int row = 0; row < rows; row++)
            {
                var source = new ReadOnlySpan<float>(query + ((long)(item.First + row / group) * config.QueryHeads + item.Head * group + row % group) * dim, dim);
                TensorPrimitives.Multiply(source, scale, new Span<float>(queries + row * dim, dim));
            }
            new Span<float>(sums, rows * dim).Clear();
            new Span<float>(total, rows).Clear();
            new Span<float>(maximum, rows).Fill(float.NegativeInfinity);
            for (int first = item.Start; first < item.End; first += KeyBlock)
            {
                int count = Math.Min(KeyBlock, item.End - first);
                Transpose(key + (long)first * keyStride + item.Head * dim, keyStride, count, dim, keys);
                for (int column = 0; column < count; column += columns)
                    MatrixTile<Float32Panel>.Rows(queries, dim, rows, (byte*)(keys + column * dim), columns * sizeof(float), dim,
                        logits + column, KeyBlock, Math.Min(columns, count - column), null, accumulate: false);
                for (int row = 0; row < rows; row++)
                    Weigh(new Span<float>(logits + row * KeyBlock, count), item.First + row / group - first + 1, ref maximum[row], ref total[row], new Span<float>(sums + row * dim, dim));
                float* values = value + (long)first * keyStride + item.Head * dim;
                for (int column = 0; column < dim; column += columns)
                    MatrixTile<Float32Panel>.Rows(logits, KeyBlock, rows, (byte*)(values + column), keyStride * sizeof(float), count,
                        sums + column, dim, Math.Min(columns, dim - column), null, accumulate: true);
            }
            for (int row = 0; row < rows; row++)
            {
                long head = (long)(item.First + row / group) * config.QueryHeads + item.Head * group + row % group;
                TensorPrimitives.Divide(new ReadOnlySpan<float>(sums + row * dim, dim), total[row], new Span<float>(output + head * dim, dim));
                logSumExp[head] = maximum[row] + MathF.Log(total[row]);
            }
        }
        ArrayPool<float>.Shared.Return(scratch);
    }

    /// <summary>Turns logits of one query and a block into weights, and rescales what has been summed to the new maximum.</summary>
    private static void Weigh(Span<float> logits, int visible, ref float maximum, ref float total, Span<float> sums)
    {
        visible = Math.Clamp(visible, 0, logits.Length);
        logits[visible..].Clear();
        if (visible == 0)
            return;
        var seen = logits[..visible];
        float now = Math.Max(maximum, TensorPrimitives.Max(seen));
        float shrink = MathF.Exp(maximum - now);
        TensorPrimitives.Subtract(seen, now, seen);
        TensorPrimitives.Exp(seen, seen);
        total = total * shrink + Sum(seen);
        if (shrink != 1)
            TensorPrimitives.Multiply(sums, shrink, sums);
        maximum = now;
    }

    /// <summary>A sum in one order, wherever the elements lie in memory.</summary>
    private static float Sum(ReadOnlySpan<float> values)
    {
        var sums = Vector<float>.Zero;
        int i = 0;
        for (; i <= values.Length - Vector<float>.Count; i += Vector<float>.Count)
            sums += new Vector<float>(values[i..]);
        float sum = Vector.Sum(sums);
        for (; i < values.Length; i++)
            sum += values[i];
        return sum;
    }

    /// <summary>Keys of a block as panels of a tile's columns.</summary>
    private static void Transpose(float* key, int stride, int count, int dim, float* panels)
    {
        int columns = MatrixTile.Columns;
        for (int j = 0; j < count; j++)
        {
            float* panel = panels + j / columns * columns * dim + j % columns;
            for (int d = 0; d < dim; d++)
                panel[d * columns] = key[j * stride + d];
        }
    }
}
