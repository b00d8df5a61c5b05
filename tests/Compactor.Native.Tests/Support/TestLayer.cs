using Compactor.Native.Compression;

namespace Compactor.Native.Tests.Support;

/// <summary>A layer's cache made from a seed: anisotropic keys around a common bias, as trained caches have.</summary>
internal sealed class TestLayer
{
    private readonly byte[] _keyPreRope, _query, _key, _value;

    private TestLayer(LayerShape shape, ElementType type, float[] keyPreRope, float[] query, float[] key, float[] value)
    {
        (KeyPreRopeValues, QueryValues, KeyValues, ValueValues) = (keyPreRope, query, key, value);
        (_keyPreRope, _query, _key, _value) = (Arrays.Encode(keyPreRope, type), Arrays.Encode(query, type), Arrays.Encode(key, type), Arrays.Encode(value, type));
        Shape = shape;
        int n = shape.Tokens, d = shape.HeadDim;
        Inputs = new LayerInputs
        {
            KeyPreRope = TensorView.Packed(Arrays.Address(_keyPreRope), type, n, shape.KvHeads, d),
            Query = TensorView.Packed(Arrays.Address(_query), type, n, shape.QueryHeads, d),
            Key = TensorView.Packed(Arrays.Address(_key), type, n, shape.KvHeads, d),
            Value = TensorView.Packed(Arrays.Address(_value), type, n, shape.KvHeads, d),
        };
    }

    public LayerShape Shape { get; }
    public LayerInputs Inputs { get; }
    public float[] KeyPreRopeValues { get; }
    public float[] QueryValues { get; }
    public float[] KeyValues { get; }
    public float[] ValueValues { get; }

    public static TestLayer Random(int seed, int[] lengths, int queryHeads, int kvHeads, int dim, ElementType type = ElementType.Float32, float bias = 1)
    {
        var random = new Random(seed);
        var shape = new LayerShape(Offsets(lengths), queryHeads, kvHeads, dim, type);
        float[] scales = [.. Enumerable.Range(0, dim).Select(i => 2f / (1 + i % 16))];
        float[] center = Draw(dim, _ => bias);
        float[] keyPreRope = Draw(shape.Tokens * kvHeads * dim, i => scales[i % dim]);
        for (int i = 0; i < keyPreRope.Length; i++)
            keyPreRope[i] += center[i % dim];
        float width = 1.5f / MathF.Sqrt(dim);
        return new TestLayer(shape, type, keyPreRope, Draw(shape.Tokens * queryHeads * dim, _ => width),
            Draw(shape.Tokens * kvHeads * dim, i => scales[i % dim]), Draw(shape.Tokens * kvHeads * dim, _ => 1));

        float[] Draw(int count, Func<int, float> scale)
        {
            var values = new float[count];
            for (int i = 0; i < count; i++)
                values[i] = scale(i) * (float)(Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()));
            return values;
        }
    }

    public static TestLayer From(LayerShape shape, float[] keyPreRope, float[] query, float[] key, float[] value) =>
        new(shape, ElementType.Float32, keyPreRope, query, key, value);

    public static int[] Offsets(int[] lengths)
    {
        var offsets = new int[lengths.Length + 1];
        for (int b = 0; b < lengths.Length; b++)
            offsets[b + 1] = offsets[b] + lengths[b];
        return offsets;
    }
}
