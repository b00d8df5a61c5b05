using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests.Compression;

/// <summary>Bad input gives one message that names the value and says what to do.</summary>
public class BadInputTests
{
    public static TheoryData<string> CpuBackends => [.. Backends.Names.Where(n => n != "reference")];

    [Theory]
    [InlineData("key_pre_rope", float.NaN, 64)]
    [InlineData("key_pre_rope", float.PositiveInfinity, 80)]
    [InlineData("key", float.NaN, 80)]
    [InlineData("key", float.NegativeInfinity, 64)]
    [InlineData("query", float.NaN, 64)]
    [InlineData("query", float.PositiveInfinity, 80)]
    public void NaN_and_infinity_are_named_by_tensor_layer_token_and_head(string tensor, float bad, int dim)
    {
        foreach (var type in Arrays.FloatTypes)
            foreach (string backendName in Backends.Names.Where(n => n != "reference"))
                foreach (var options in CompressionPresets.ByName.Values)
                {
                    var clean = TestLayer.Random(31, [50, 400], 10, 2, dim);
                    int heads = tensor == "query" ? 10 : 2;
                    float[] Poison(string name, float[] values)
                    {
                        if (name != tensor)
                            return values;
                        float[] poisoned = [.. values];
                        poisoned[((50 + 123) * heads + 1) * dim + dim - 1] = bad;
                        poisoned[((50 + 300) * heads + 1) * dim + 2] = bad;
                        return poisoned;
                    }
                    byte[] keyPreRope = Arrays.Encode(Poison("key_pre_rope", clean.KeyPreRopeValues), type), query = Arrays.Encode(Poison("query", clean.QueryValues), type);
                    byte[] key = Arrays.Encode(Poison("key", clean.KeyValues), type), value = Arrays.Encode(clean.ValueValues, type);
                    var shape = new LayerShape([0, 50, 450], 10, 2, dim, type) { Layer = 7 };
                    var inputs = new LayerInputs { KeyPreRope = View(keyPreRope, 2), Query = View(query, 10), Key = View(key, 2), Value = View(value, 2) };
                    using var backend = Backends.Create(backendName);
                    var e = Assert.Throws<CompactorException>(() => LayerCompressor.Select(backend, new LayerPlan(shape, options, Budget.Retention(0.5)), inputs));
                    GC.KeepAlive((keyPreRope, query, key, value));
                    Assert.Equal(CompactorStatus.NonFinite, e.Status);
                    Assert.StartsWith($"Layer 7: {tensor} holds {bad} at token 123 of sequence 1, head 1. ", e.Message);

                    TensorView View(byte[] bytes, int h) => TensorView.Packed(Arrays.Address(bytes), type, 450, h, dim);
                }
    }

    [Theory]
    [MemberData(nameof(CpuBackends))]
    public void Finite_inputs_whose_logits_overflow_are_refused(string backendName)
    {
        float[] huge = [.. Enumerable.Repeat(1e30f, 100 * 16)];
        var layer = TestLayer.From(new LayerShape([0, 100], 1, 1, 16, ElementType.Float32), [.. huge.Select((_, i) => (float)(i % 7))], huge, huge, huge);
        using var backend = Backends.Create(backendName);
        var e = Assert.Throws<CompactorException>(() => LayerCompressor.Select(backend, new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.5)), layer.Inputs));
        GC.KeepAlive(layer);
        Assert.Equal(CompactorStatus.NonFinite, e.Status);
        Assert.Contains("overflow float32", e.Message);
    }

    [Theory]
    [MemberData(nameof(CpuBackends))]
    public void Short_sequences_run(string backendName)
    {
        foreach (var options in CompressionPresets.ByName.Values)
            foreach (int n in new[] { 0, 1, 2, 3, 11, 12, 13, 19, 20, 21, 47, 48, 79, 80, 81 })
            {
                var layer = TestLayer.Random(n, [n], 4, 2, 64);
                var run = Run.Of(backendName, layer, options, 0.5);
                Assert.InRange(run.Indices.Length, 0, 2 * n);
                if (n <= options.ProtectFirst + options.ProtectLast)
                    Assert.Equal(2 * n, run.Indices.Length);
            }
    }

    [Fact]
    public void Shapes_are_checked()
    {
        Refused("must be a multiple", () => Shape([0, 4], 5, 2, 64));
        Refused("at most 16", () => Shape([0, 4], 34, 2, 64));
        Refused("0 KV heads", () => Shape([0, 4], 0, 0, 64));
        Refused("steps of 16", () => Shape([0, 4], 2, 2, 72));
        Refused("steps of 16", () => Shape([0, 4], 2, 2, 8));
        Refused("steps of 16", () => Shape([0, 4], 2, 2, 272));
        Refused("cu_seqlens[2] is 3", () => Shape([0, 4, 3], 2, 2, 64));
        Refused("must start with 0", () => Shape([1, 4], 2, 2, 64));
        Refused("must start with 0", () => Shape([], 2, 2, 64));
        Refused("split the batch", () => Shape([0, int.MaxValue], 2, 2, 64));

        static LayerShape Shape(int[] cuSeqlens, int hq, int hkv, int dim) => new(cuSeqlens, hq, hkv, dim, ElementType.Float32);
    }

    [Fact]
    public void Options_are_checked()
    {
        var paper = CompressionPresets.Paper;
        foreach (var (options, part) in new (CompressionOptions, string)[]
                 {
                     (paper with { SketchDimension = 50 }, "SketchDimension is 50; use 16 to 128 in steps of 16"),
                     (paper with { LeverageChunk = 10 }, "LeverageChunk is 10; use 64 to 4096 (or 0 for the whole sequence)"),
                     (paper with { Epsilon = -1 }, "Epsilon is -1"),
                     (paper with { Epsilon = double.NaN }, "Epsilon is NaN"),
                     (paper with { AttentionChunk = 1024 }, "AttentionChunk is 1024; use 64 to 512"),
                     (paper with { AttentionScale = 0 }, "AttentionScale is 0; use a finite number above 0"),
                     (paper with { PoolWidth = 4 }, "PoolWidth is 4; use an odd width"),
                     (paper with { StandardDeviationFloor = -1 }, "StandardDeviationFloor is -1"),
                     (paper with { LeverageWeight = double.PositiveInfinity }, "LeverageWeight is"),
                     (paper with { LeverageWeight = 1e308 }, "LeverageWeight is 1E+308; use a number from 0 to 1E+30"),
                     (paper with { ProtectFirst = -1 }, "ProtectFirst is -1; use 0 or more"),
                     (paper with { ProtectLast = -5 }, "ProtectLast is -5"),
                     (paper with { MinTokensPerHead = -1 }, "MinTokensPerHead is -1"),
                     (paper with { SelectionScope = (SelectionScope)9 }, "SelectionScope is 9; use one of Sequence, Head, Token"),
                     (paper with { SketchSharing = (SketchSharing)9 }, "SketchSharing is 9"),
                     (paper with { LeverageScope = (NormalizationScope)9 }, "LeverageScope is 9"),
                     (paper with { AttentionScope = (NormalizationScope)9 }, "AttentionScope is 9"),
                     (paper with { GroupReduction = (GroupReduction)9 }, "GroupReduction is 9"),
                     (paper with { ProtectedBudget = (ProtectedBudget)9 }, "ProtectedBudget is 9"),
                     (paper with { RetentionCount = (RetentionCount)9 }, "RetentionCount is 9"),
                 })
            Refused(part, options.Validate);
    }

    [Fact]
    public void Inputs_are_checked_against_the_plan()
    {
        var layer = TestLayer.Random(33, [64], 4, 2, 64);
        using var backend = Backends.Cpu(1);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.5));
        var inputs = layer.Inputs;
        Refused("key is [63, 2, 64]", () => Select(inputs with { Key = inputs.Key with { Tokens = 63 } }));
        Refused("query is [64, 2, 64]", () => Select(inputs with { Query = inputs.Key }));
        Refused("(MLA) are not supported", () => Select(inputs with { Value = inputs.Value with { Dim = 32 } }));
        Refused("key_pre_rope has a null address", () => Select(inputs with { KeyPreRope = inputs.Key with { Address = 0 } }));
        Refused("key is not aligned", () => Select(inputs with { Key = inputs.Key with { Address = inputs.Key.Address + 2 } }));
        Refused("leverage needs keys before RoPE", () => Select(inputs with { KeyPreRope = null }));
        Refused("RoPE tables cover 63 tokens", () => Select(inputs with { KeyPreRope = null, Rotary = RotaryEmbedding.FromTables([.. Enumerable.Repeat(1f, 63)], new float[63], 2) }));
        Refused("exceeds the head dimension", () => Select(inputs with { KeyPreRope = null, Rotary = RotaryEmbedding.FromTheta(10000, 128) }));
        Refused("needs queries", () => LayerCompressor.Select(backend, plan, inputs with { Query = null }, SelectionPolicy.AttentionOnly).Dispose());
        Refused("Phi has 5 entries", () => Sketch.FromValues(new float[5], layer.Shape, 48));
        Refused("Phi has 50 columns", () => Sketch.FromValues(new float[64 * 50], layer.Shape, 50));
        Refused("RoPE theta is 1", () => RotaryEmbedding.FromTheta(1, 64));
        Refused("rotary dimension is 3", () => RotaryEmbedding.FromTheta(10000, 3));
        Refused("which no rotation has", () => RotaryEmbedding.FromTables([0f], [0f], 2));
        Refused("thread count is -1", () => new CpuBackend(-1));
        GC.KeepAlive(layer);

        void Select(LayerInputs given) => LayerCompressor.Select(backend, plan, given).Dispose();
    }

    [Fact]
    public void Without_queries_leverage_alone_decides()
    {
        var layer = TestLayer.Random(34, [300], 4, 2, 64);
        foreach (string name in Backends.Names)
        {
            using var backend = Backends.Create(name);
            var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.5));
            var without = Run.Of(backend, plan, layer.Inputs with { Query = null });
            var alone = Run.Of(backend, plan, layer.Inputs, SelectionPolicy.LeverageOnly);
            Assert.Null(without.Attention);
            Assert.Equal(alone.Indices, without.Indices);
        }
        GC.KeepAlive(layer);
    }

    private static void Refused(string part, Action action) => Assert.Contains(part, Assert.Throws<CompactorException>(action).Message);
}
