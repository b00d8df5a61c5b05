using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public unsafe class OutputErrorTests
{
    private static readonly int[] s_cuSeqlens = [0, 300, 300, 341];
    private const int QueryHeads = 4, KvHeads = 2, Dim = 32;

    private static float[] Noise(int length, uint stream, double scale = 1)
    {
        var values = new float[length];
        Span<double> four = stackalloc double[4];
        for (int i = 0; i < length; i++)
        {
            Philox.Normals((uint)i, stream, 0, 0, 7, four);
            values[i] = (float)(Half)(four[0] * scale);
        }
        return values;
    }

    private static (int[] Indices, int[] Offsets) Every(int step, int segments, Func<int, int> length)
    {
        var indices = new List<int>();
        var offsets = new List<int> { 0 };
        for (int s = 0; s < segments; s++)
        {
            for (int t = s % step; t < length(s); t += step)
                indices.Add(t);
            offsets.Add(indices.Count);
        }
        return ([.. indices], [.. offsets]);
    }

    /// <summary>The definition, in double, one probe and head at a time.</summary>
    private static double Naive(LayerShape shape, float[] key, float[] value, float[] query, int[] indices, int[] offsets,
        IEnumerable<(int Sequence, int Row, int Visible)> probes)
    {
        double difference = 0, norm = 0;
        foreach (var (b, row, visible) in probes)
            for (int hq = 0; hq < shape.QueryHeads; hq++)
            {
                int h = hq / shape.Group, segment = b * shape.KvHeads + h;
                double[] full = Output(Enumerable.Range(0, visible));
                double[] kept = Output(indices[offsets[segment]..offsets[segment + 1]].Where(t => t < visible));
                for (int d = 0; d < Dim; d++)
                    (difference, norm) = (difference + (kept[d] - full[d]) * (kept[d] - full[d]), norm + full[d] * full[d]);

                double[] Output(IEnumerable<int> tokens)
                {
                    var output = new double[Dim];
                    double sum = 0;
                    foreach (int t in tokens)
                    {
                        int at = ((shape.CuSeqlens[b] + t) * shape.KvHeads + h) * Dim;
                        double logit = 0;
                        for (int d = 0; d < Dim; d++)
                            logit += (double)query[(row * shape.QueryHeads + hq) * Dim + d] * key[at + d];
                        double weight = Math.Exp(logit / Math.Sqrt(Dim));
                        sum += weight;
                        for (int d = 0; d < Dim; d++)
                            output[d] += weight * value[at + d];
                    }
                    return sum == 0 ? output : [.. output.Select(x => x / sum)];
                }
            }
        return Math.Sqrt(difference / norm);
    }

    private static void WithView(float[] values, int heads, ElementType type, Action<TensorView> use)
    {
        int tokens = values.Length / heads / Dim;
        if (type == ElementType.Float32)
            fixed (float* p = values)
                use(TensorView.Packed((nint)p, type, tokens, heads, Dim));
        else if (type == ElementType.Float16)
            fixed (Half* p = values.Select(x => (Half)x).ToArray())
                use(TensorView.Packed((nint)p, type, tokens, heads, Dim));
        else
            fixed (ushort* p = values.Select(x => (ushort)(BitConverter.SingleToUInt32Bits(x) >> 16)).ToArray())
                use(TensorView.Packed((nint)p, type, tokens, heads, Dim));
    }

    private static float[] Representable(float[] values, ElementType type) => type == ElementType.BFloat16
        ? [.. values.Select(x => BitConverter.UInt32BitsToSingle(BitConverter.SingleToUInt32Bits(x) & 0xFFFF0000))]
        : values;

    [Theory]
    [InlineData(ElementType.Float32, false)]
    [InlineData(ElementType.Float16, false)]
    [InlineData(ElementType.BFloat16, false)]
    [InlineData(ElementType.Float32, true)]
    [InlineData(ElementType.BFloat16, true)]
    public void Agrees_with_the_definition_in_double(ElementType type, bool causal)
    {
        var shape = new LayerShape(s_cuSeqlens, QueryHeads, KvHeads, Dim, type);
        var key = Representable(Noise(shape.Tokens * KvHeads * Dim, 1, 2), type);
        var value = Representable(Noise(shape.Tokens * KvHeads * Dim, 2), type);
        int probeTokens = causal ? shape.Tokens : 70;
        var query = Representable(Noise(probeTokens * QueryHeads * Dim, 3, 2), type);
        var half = Every(2, shape.Sequences * KvHeads, s => shape.LengthOf(s / KvHeads));
        // Kept sets that leave whole token blocks, or everything a causal probe sees, empty.
        var sparse = Every(299, shape.Sequences * KvHeads, s => shape.LengthOf(s / KvHeads));
        var last = Every(1, shape.Sequences * KvHeads, _ => 0);
        var probes = new List<(int, int, int)>();
        for (int b = 0; b < shape.Sequences; b++)
            for (int p = 0; p < probeTokens; p++)
                if (!causal)
                    probes.Add((b, p, shape.LengthOf(b)));
                else if (p < shape.LengthOf(b) && p >= shape.LengthOf(b) - 16)
                    probes.Add((b, shape.CuSeqlens[b] + p, p + 1));

        double[] errors = [], single = [];
        WithView(key, KvHeads, type, k => WithView(value, KvHeads, type, v => WithView(query, QueryHeads, type, q =>
        {
            OutputError Make(int threads) => causal
                ? OutputError.OfLastTokens(shape, k, v, q, 16, threads)
                : OutputError.AfterContext(shape, k, v, q, threads);
            errors = Make(0).Of((half.Indices, half.Offsets), (sparse.Indices, sparse.Offsets), (last.Indices, last.Offsets));
            single = Make(1).Of((half.Indices, half.Offsets), (sparse.Indices, sparse.Offsets), (last.Indices, last.Offsets));
        })));

        Assert.Equal(single, errors);
        Assert.Equal(Naive(shape, key, value, query, half.Indices, half.Offsets, probes), errors[0], 1e-5);
        Assert.Equal(Naive(shape, key, value, query, sparse.Indices, sparse.Offsets, probes), errors[1], 1e-5);
        Assert.Equal(1, errors[2], 1e-12);
    }

    [Fact]
    public void Keeping_everything_has_no_error()
    {
        var shape = new LayerShape([0, 20], 2, 2, Dim, ElementType.Float32);
        var noise = Noise(20 * 2 * Dim, 4);
        var all = Every(1, 2, _ => 20);
        all.Indices = [.. Enumerable.Range(0, 20), .. Enumerable.Range(0, 20)];
        all.Offsets = [0, 20, 40];
        WithView(noise, 2, ElementType.Float32, x =>
            Assert.Equal([0.0], OutputError.OfLastTokens(shape, x, x, x, 100).Of((all.Indices, all.Offsets))));
    }

    [Fact]
    public void Logits_far_apart_do_not_overflow()
    {
        var shape = new LayerShape([0, 2], 1, 1, Dim, ElementType.Float32);
        float[] key = new float[2 * Dim], value = new float[2 * Dim], query = new float[Dim];
        key.AsSpan(0, Dim).Fill(1000);
        value.AsSpan(0, Dim).Fill(1);
        value.AsSpan(Dim, Dim).Fill(3);
        query.AsSpan().Fill(1000);
        WithView(key, 1, ElementType.Float32, k => WithView(value, 1, ElementType.Float32, v => WithView(query, 1, ElementType.Float32, q =>
            Assert.Equal([2.0], OutputError.AfterContext(shape, k, v, q).Of((new[] { 1 }, new[] { 0, 1 }))))));
    }

    [Fact]
    public void Probes_of_another_shape_are_refused()
    {
        var shape = new LayerShape([0, 2], 2, 1, Dim, ElementType.Float32);
        var view = TensorView.Packed(64, ElementType.Float32, 2, 1, Dim);
        Assert.Contains("expected 2 heads", Assert.Throws<CompactorException>(() => OutputError.AfterContext(shape, view, view, view)).Message);
    }
}
