using System.Numerics;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Compactor.Native.Compression;

/// <summary>
/// How far attention outputs move when a layer's cache is cut down: <c>||out_kept - out_full|| / ||out_full||</c> over all probes and
/// heads, where <c>out = softmax(q·k / sqrt(D))·V</c> over the kept tokens or over all. Keys, values and probes are in host memory.
/// </summary>
public sealed unsafe class OutputError
{
    private const int BlockTokens = 256, BlockProbes = 64;

    private readonly LayerShape _shape;
    private readonly TensorView _key, _value, _probes;
    private readonly List<Probe> _order = [];
    private readonly int[] _firstProbe;
    private readonly int _threads;

    /// <summary>One query token: where it is in the probe tensor, and how many tokens of the cached sequence it sees.</summary>
    private readonly record struct Probe(int Sequence, int SequenceStart, int Token, int Visible);

    /// <summary>One KV head of one sequence with some of its probes.</summary>
    private readonly record struct Item(int Sequence, int Head, int FirstProbe, int Probes);

    private OutputError(LayerShape shape, in TensorView key, in TensorView value, in TensorView probes, int threads)
    {
        if (probes.Heads != shape.QueryHeads || probes.Dim != shape.HeadDim)
            throw CompactorException.Argument(
                $"Layer {shape.Layer}: probes are [{probes.Tokens}, {probes.Heads}, {probes.Dim}] (tokens, heads, dim); expected {shape.QueryHeads} heads of dimension {shape.HeadDim}.");
        (_shape, _key, _value, _probes) = (shape, key, value, probes);
        _threads = threads > 0 ? threads : Environment.ProcessorCount;
        _firstProbe = new int[shape.Sequences + 1];
    }

    /// <summary>Probes that come after the context: each sees every token of every sequence.</summary>
    /// <param name="shape">Shape of the layer.</param>
    /// <param name="key">Keys after RoPE, <c>[N, Hkv, D]</c>.</param>
    /// <param name="value">Values, <c>[N, Hkv, D]</c>.</param>
    /// <param name="probes">
    /// Queries after RoPE: packed <c>[P, Hq, D]</c>, all of which every sequence is asked, or <c>[B, Hq, P, D]</c>, P for each sequence.
    /// </param>
    /// <param name="threads">Threads to use; 0 for all cores. Results do not depend on it.</param>
    /// <exception cref="CompactorException">The probes' shape does not fit.</exception>
    public static OutputError AfterContext(LayerShape shape, in TensorView key, in TensorView value, in TensorView probes, int threads = 0)
    {
        var error = new OutputError(shape, key, value, probes, threads);
        bool own = probes.SequenceStride != 0;
        int count = own ? probes.Tokens / Math.Max(1, shape.Sequences) : probes.Tokens;
        for (int b = 0; b < shape.Sequences; b++)
        {
            for (int p = 0; p < count; p++)
                error._order.Add(new Probe(own ? b : 0, 0, p, shape.LengthOf(b)));
            error._firstProbe[b + 1] = error._order.Count;
        }
        return error;
    }

    /// <summary>The last tokens' own queries as probes: the query of token t sees the tokens up to t.</summary>
    /// <param name="shape">Shape of the layer.</param>
    /// <param name="key">Keys after RoPE, <c>[N, Hkv, D]</c>.</param>
    /// <param name="value">Values, <c>[N, Hkv, D]</c>.</param>
    /// <param name="query">Queries after RoPE, <c>[N, Hq, D]</c>.</param>
    /// <param name="count">Probes a sequence, or all tokens it has.</param>
    /// <param name="threads">Threads to use; 0 for all cores. Results do not depend on it.</param>
    /// <exception cref="CompactorException">The queries' shape does not fit.</exception>
    public static OutputError OfLastTokens(LayerShape shape, in TensorView key, in TensorView value, in TensorView query, int count, int threads = 0)
    {
        var error = new OutputError(shape, key, value, query, threads);
        for (int b = 0; b < shape.Sequences; b++)
        {
            int tokens = shape.LengthOf(b);
            for (int t = Math.Max(0, tokens - count); t < tokens; t++)
                error._order.Add(new Probe(b, shape.CuSeqlens[b], t, t + 1));
            error._firstProbe[b + 1] = error._order.Count;
        }
        return error;
    }

    /// <summary>Compares several kept sets with the full cache, whose outputs are computed once.</summary>
    /// <param name="kept">
    /// Per set: tokens within their sequences, ascending per head, sequence by sequence and head by head, and <c>[B·Hkv + 1]</c> where
    /// each head's tokens start. A head with no visible kept token gives output 0.
    /// </param>
    /// <returns>The error of each set; 0 when there are no probes, infinite when the full output is 0 and the kept one is not.</returns>
    public double[] Of(params ReadOnlySpan<(ReadOnlyMemory<int> Indices, ReadOnlyMemory<int> Offsets)> kept)
    {
        var sets = kept.ToArray();
        foreach (var (_, offsets) in sets)
            if (offsets.Length != _shape.Sequences * _shape.KvHeads + 1)
                throw CompactorException.Argument(
                    $"Layer {_shape.Layer}: a kept set has {offsets.Length} offsets; expected {_shape.Sequences * _shape.KvHeads + 1}.");
        var items = new List<Item>();
        for (int b = 0; b < _shape.Sequences; b++)
            for (int h = 0; h < _shape.KvHeads; h++)
                for (int p = _firstProbe[b]; p < _firstProbe[b + 1]; p += BlockProbes)
                    items.Add(new Item(b, h, p, Math.Min(BlockProbes, _firstProbe[b + 1] - p)));

        var squares = new double[items.Count][];
        Parallel.For(0, items.Count, new ParallelOptions { MaxDegreeOfParallelism = _threads }, i => squares[i] = Squares(items[i], sets));

        var sums = new double[sets.Length + 1];
        foreach (var item in squares)
            for (int s = 0; s < sums.Length; s++)
                sums[s] += item[s];
        return [.. sums[1..].Select(difference => difference == 0 ? 0 : Math.Sqrt(difference / sums[0]))];
    }

    /// <summary>Squared norm of the full output, then of each set's difference from it. Set 0 is the full cache throughout.</summary>
    private double[] Squares(Item item, (ReadOnlyMemory<int> Indices, ReadOnlyMemory<int> Offsets)[] kept)
    {
        int dim = _shape.HeadDim, group = _shape.Group, rows = item.Probes * group, sets = kept.Length + 1;
        int segment = item.Sequence * _shape.KvHeads + item.Head, start = _shape.CuSeqlens[item.Sequence];
        var queries = new float[rows * dim];
        for (int p = 0; p < item.Probes; p++)
            for (int g = 0; g < group; g++)
            {
                var probe = _order[item.FirstProbe + p];
                Load(_probes, probe.Sequence, probe.SequenceStart, probe.Token, item.Head * group + g, queries.AsSpan((p * group + g) * dim, dim));
            }
        TensorPrimitives.Multiply(queries, 1 / MathF.Sqrt(dim), queries);

        // Online softmax over token blocks: running maximum, sum and output of every (row, set).
        var maximum = new float[rows * sets];
        Array.Fill(maximum, float.NegativeInfinity);
        var sum = new double[rows * sets];
        var output = new double[rows * sets * dim];
        float[] keys = new float[BlockTokens * dim], values = new float[BlockTokens * dim];
        float[] logits = new float[BlockTokens], weights = new float[BlockTokens], partial = new float[dim];
        var chosen = new int[BlockTokens];
        var next = new int[kept.Length];

        int end = 0;
        for (int p = 0; p < item.Probes; p++)
            end = Math.Max(end, _order[item.FirstProbe + p].Visible);
        for (int first = 0; first < end; first += BlockTokens)
        {
            int count = Math.Min(BlockTokens, end - first);
            for (int t = 0; t < count; t++)
            {
                Load(_key, item.Sequence, start, first + t, item.Head, keys.AsSpan(t * dim, dim));
                Load(_value, item.Sequence, start, first + t, item.Head, values.AsSpan(t * dim, dim));
            }
            var inBlock = new ReadOnlyMemory<int>[kept.Length];
            for (int s = 0; s < kept.Length; s++)
            {
                var offsets = kept[s].Offsets.Span;
                var tokens = kept[s].Indices[offsets[segment]..offsets[segment + 1]];
                int last = next[s];
                while (last < tokens.Length && tokens.Span[last] < first + count)
                    last++;
                inBlock[s] = tokens[next[s]..last];
                next[s] = last;
            }
            for (int row = 0; row < rows; row++)
            {
                int visible = Math.Min(count, _order[item.FirstProbe + row / group].Visible - first);
                if (visible <= 0)
                    continue;
                var query = queries.AsSpan(row * dim, dim);
                for (int t = 0; t < visible; t++)
                    logits[t] = TensorPrimitives.Dot(query, keys.AsSpan(t * dim, dim));
                for (int s = 0; s < sets; s++)
                    Accumulate(row * sets + s, s == 0 ? default : inBlock[s - 1].Span, s == 0, first, visible);
            }
        }
        return Compare();

        void Accumulate(int slot, ReadOnlySpan<int> tokens, bool all, int first, int visible)
        {
            int count = 0;
            if (all)
                for (; count < visible; count++)
                    (chosen[count], weights[count]) = (count, logits[count]);
            else
                for (; count < tokens.Length && tokens[count] - first is var token && token < visible; count++)
                    (chosen[count], weights[count]) = (token, logits[token]);
            if (count == 0)
                return;
            var used = weights.AsSpan(0, count);
            float top = TensorPrimitives.Max(used), before = maximum[slot];
            if (top > before)
            {
                maximum[slot] = top;
                double shrink = Math.Exp(before - (double)top);
                sum[slot] *= shrink;
                TensorPrimitives.Multiply(output.AsSpan(slot * dim, dim), shrink, output.AsSpan(slot * dim, dim));
            }
            TensorPrimitives.Subtract(used, maximum[slot], used);
            TensorPrimitives.Exp(used, used);
            sum[slot] += TensorPrimitives.Sum(used);
            WeightedSum(values, chosen.AsSpan(0, count), used, partial);
            for (int d = 0; d < dim; d++)
                output[slot * dim + d] += partial[d];
        }

        double[] Compare()
        {
            var squares = new double[sets];
            for (int row = 0; row < rows; row++)
                for (int s = 0; s < sets; s++)
                {
                    int full = row * sets, slot = full + s;
                    double fullScale = Reciprocal(sum[full]), scale = Reciprocal(sum[slot]);
                    for (int d = 0; d < dim; d++)
                    {
                        double reference = output[full * dim + d] * fullScale;
                        double value = s == 0 ? reference : output[slot * dim + d] * scale - reference;
                        squares[s] += value * value;
                    }
                }
            return squares;
        }

        static double Reciprocal(double value) => value == 0 ? 0 : 1 / value;
    }

    /// <summary><c>sum = weights · rows of values</c>, row by row; <paramref name="sum"/> has the rows' length.</summary>
    private static void WeightedSum(ReadOnlySpan<float> values, ReadOnlySpan<int> rows, ReadOnlySpan<float> weights, Span<float> sum)
    {
        int dim = sum.Length, width = Vector<float>.Count, d = 0;
        // Four vectors of the sum stay in registers.
        for (; d + 4 * width <= dim; d += 4 * width)
        {
            Vector<float> s0 = default, s1 = default, s2 = default, s3 = default;
            for (int i = 0; i < rows.Length; i++)
            {
                var row = values.Slice(rows[i] * dim + d, 4 * width);
                var weight = new Vector<float>(weights[i]);
                s0 = Vector.FusedMultiplyAdd(weight, new Vector<float>(row), s0);
                s1 = Vector.FusedMultiplyAdd(weight, new Vector<float>(row[width..]), s1);
                s2 = Vector.FusedMultiplyAdd(weight, new Vector<float>(row[(2 * width)..]), s2);
                s3 = Vector.FusedMultiplyAdd(weight, new Vector<float>(row[(3 * width)..]), s3);
            }
            s0.CopyTo(sum[d..]);
            s1.CopyTo(sum[(d + width)..]);
            s2.CopyTo(sum[(d + 2 * width)..]);
            s3.CopyTo(sum[(d + 3 * width)..]);
        }
        for (; d < dim; d++)
        {
            float s = 0;
            for (int i = 0; i < rows.Length; i++)
                s = MathF.FusedMultiplyAdd(weights[i], values[rows[i] * dim + d], s);
            sum[d] = s;
        }
    }

    private static void Load(in TensorView view, int sequence, int sequenceStart, int token, int head, Span<float> row)
    {
        void* source = (void*)view.Row(sequence, sequenceStart, token, head);
        switch (view.ElementType)
        {
            case ElementType.Float32:
                new ReadOnlySpan<float>(source, row.Length).CopyTo(row);
                break;
            case ElementType.Float16:
                TensorPrimitives.ConvertToSingle(new ReadOnlySpan<Half>(source, row.Length), row);
                break;
            default:
                var bits = MemoryMarshal.Cast<float, uint>(row);
                for (int d = 0; d < bits.Length; d++)
                    bits[d] = (uint)((ushort*)source)[d] << 16;
                break;
        }
    }
}
