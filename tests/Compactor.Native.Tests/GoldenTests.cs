using Compactor.Native.Compression;
using Compactor.Native.Io;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests;

/// <summary>Every golden file, on every backend: outputs of the reference implementations, and of an independent float64 statement.</summary>
public class GoldenTests
{
    private static readonly string Folder = Path.Combine(AppContext.BaseDirectory, "data", "golden");

    public static IEnumerable<TheoryDataRow<string, string>> Files(string prefix) =>
        from path in Directory.EnumerateFiles(Folder, prefix + "*.safetensors").Order()
        from backend in Backends.Names
        select new TheoryDataRow<string, string>(Path.GetFileNameWithoutExtension(path), backend);

    [Fact]
    public void Golden_files_are_all_present() => Assert.Equal(18, Directory.GetFiles(Folder, "*.safetensors").Length);

    [Theory]
    [MemberData(nameof(Files), "kvpress_leverage")]
    public void Leverage_of_kvpress(string file, string backendName)
    {
        using var golden = SafetensorsFile.Open(Path.Combine(Folder, file + ".safetensors"));
        using var backend = Backends.Create(backendName);
        var keys = View(golden.Tensors["key_pre_rope"], KvLayout.BatchHeadSequence);
        var phi = golden.Tensors["phi"];
        int batch = (int)phi.Shape[0], heads = (int)phi.Shape[1], tokens = keys.Tokens / batch, k = (int)phi.Shape[3];
        var shape = new LayerShape([.. Enumerable.Range(0, batch + 1).Select(b => b * tokens)], 0, heads, keys.Dim, keys.ElementType);
        var plan = new LayerPlan(shape, CompressionPresets.Paper with { SketchDimension = k }, Budget.Retention(0.5));
        var sketch = Sketch.FromValues(phi.ToFloat32(), shape, k);
        using var leverage = backend.Allocate<float>(shape.Tokens * heads);
        backend.Leverage(plan, keys, null, sketch, leverage.View);

        float[] actual = HeadMajor(leverage.View.AsSpan(), batch, tokens, heads);
        Assert.InRange(Arrays.RelativeError(actual, golden.Tensors["scores"].ToFloat32()), 0, 1e-5);
        float[] packed = PackedKeys(golden.Tensors["key_pre_rope"], batch, heads, tokens);
        Assert.InRange(Arrays.RelativeError(leverage.View.AsSpan(), SingularValueLeverage.Of(plan, packed, sketch)), 0, 1e-5);
    }

    [Theory]
    [MemberData(nameof(Files), "vllm_leverage")]
    public void Leverage_of_compactor_vllm(string file, string backendName)
    {
        using var golden = SafetensorsFile.Open(Path.Combine(Folder, file + ".safetensors"));
        using var backend = Backends.Create(backendName);
        var keys = View(golden.Tensors["key_pre_rope"], KvLayout.PackedTokens);
        var phi = golden.Tensors["phi"];
        var shape = new LayerShape(TestLayer.Offsets(golden.Tensors["context_lens"].ToInt32()), 0, keys.Heads, keys.Dim, keys.ElementType);
        var plan = new LayerPlan(shape, CompressionPresets.CompactorVllm, Budget.Retention(0.5));
        using var leverage = backend.Allocate<float>(shape.Tokens * keys.Heads);
        var sketch = Sketch.FromValues(phi.ToFloat32(), shape, (int)phi.Shape[1]);
        backend.Leverage(plan, keys, null, sketch, leverage.View);
        Assert.InRange(Arrays.RelativeError(leverage.View.AsSpan(), golden.Tensors["scores"].ToFloat32()), 0, 1e-5);
        Assert.InRange(Arrays.RelativeError(leverage.View.AsSpan(), SingularValueLeverage.Of(plan, golden.Tensors["key_pre_rope"].ToFloat32(), sketch)), 0, 1e-5);
    }

    [Theory]
    [MemberData(nameof(Files), "kvpress_noncausal")]
    public void Column_sums_of_kvpress(string file, string backendName)
    {
        using var golden = SafetensorsFile.Open(Path.Combine(Folder, file + ".safetensors"));
        using var backend = Backends.Create(backendName);
        var query = View(golden.Tensors["query"], KvLayout.BatchHeadSequence);
        var key = View(golden.Tensors["key"], KvLayout.BatchHeadSequence);
        int chunk = int.Parse(file[(file.LastIndexOf('c') + 1)..]);
        var shape = new LayerShape([0, key.Tokens], query.Heads, key.Heads, key.Dim, key.ElementType);
        var plan = new LayerPlan(shape, CompressionPresets.Paper with { AttentionChunk = chunk }, Budget.Retention(0.5));
        float[] actual = Attention(backend, plan, query, key);

        // On a partial last chunk kvpress leaves softmax mass on padded keys; there the float64 reference is the oracle.
        float[] expected = key.Tokens % chunk == 0
            ? HeadMajor(golden.Tensors["column_sums"].ToFloat32(), 1, key.Heads, key.Tokens)
            : Attention(Backends.Create("reference"), plan, query, key);
        Assert.InRange(Arrays.RelativeError(actual, expected), 0, 1e-5);
        if (key.Tokens % chunk != 0)
        {
            int whole = key.Tokens / chunk * chunk * key.Heads;
            float[] golden64 = HeadMajor(golden.Tensors["column_sums"].ToFloat32(), 1, key.Heads, key.Tokens);
            Assert.InRange(Arrays.RelativeError(actual.AsSpan(0, whole), golden64.AsSpan(0, whole)), 0, 1e-5);
        }
    }

    [Theory]
    [MemberData(nameof(Files), "kvpress_compactor")]
    public void Scores_and_selection_of_kvpress(string file, string backendName)
    {
        using var golden = SafetensorsFile.Open(Path.Combine(Folder, file + ".safetensors"));
        using var backend = Backends.Create(backendName);
        var key = View(golden.Tensors["key"], KvLayout.BatchHeadSequence);
        var query = View(golden.Tensors["query"], KvLayout.BatchHeadSequence);
        int n = key.Tokens, heads = key.Heads;
        double retention = double.Parse(golden.Metadata["retention"]);
        var options = CompressionPresets.KvPress with { AttentionChunk = int.Parse(golden.Metadata["chunk"]) };
        Assert.Equal(1 - retention, double.Parse(golden.Metadata["blending"]));
        var shape = new LayerShape([0, n], query.Heads, heads, key.Dim, key.ElementType);
        var plan = new LayerPlan(shape, options, Budget.Retention(retention));
        var inputs = new LayerInputs
        {
            KeyPreRope = View(golden.Tensors["key_pre_rope"], KvLayout.BatchHeadSequence),
            Query = query,
            Key = key,
            Value = View(golden.Tensors["value"], KvLayout.BatchHeadSequence),
        };
        var sketch = Sketch.FromValues(golden.Tensors["phi"].ToFloat32(), shape, 48);
        using var selection = LayerCompressor.Select(backend, plan, inputs, sketch: sketch);

        float[] packed = PackedKeys(golden.Tensors["key_pre_rope"], 1, heads, n);
        Assert.InRange(Arrays.RelativeError(Arrays.Copy(selection.Leverage), SingularValueLeverage.Of(plan, packed, sketch)), 0, 1e-5);
        float[] goldenScores = HeadMajor(golden.Tensors["scores"].ToFloat32(), 1, heads, n), scores = Arrays.Copy(selection.Scores);
        double error = ScoreError(scores, goldenScores, out double largest);
        Assert.InRange(error, 0, 1e-4);

        int[] keptPerHead = golden.Tensors["kept_per_head"].ToInt32();
        int perHead = keptPerHead.Length / heads;
        int[] kept = [.. Enumerable.Range(0, heads).SelectMany(h => keptPerHead[(h * perHead)..((h + 1) * perHead)].Order())];
        Assert.Equal(kept, SelectFrom(backend, plan, goldenScores).Indices);
        AssertSameUpToError(plan, goldenScores, largest, kept, selection);
    }

    [Theory]
    [MemberData(nameof(Files), "spec_")]
    public void All_stages_of_the_independent_statement(string file, string backendName)
    {
        using var golden = SafetensorsFile.Open(Path.Combine(Folder, file + ".safetensors"));
        using var backend = Backends.Create(backendName);
        var key = View(golden.Tensors["key"], KvLayout.PackedTokens);
        var query = View(golden.Tensors["query"], KvLayout.PackedTokens);
        var options = golden.Metadata["preset"] == "paper" ? CompressionPresets.Paper : CompressionPresets.CompactorVllm;
        var shape = new LayerShape(golden.Tensors["cu_seqlens"].ToInt32(), query.Heads, key.Heads, key.Dim, key.ElementType);
        var plan = new LayerPlan(shape, options, Budget.Retention(double.Parse(golden.Metadata["retention"])));
        var inputs = new LayerInputs
        {
            KeyPreRope = View(golden.Tensors["key_pre_rope"], KvLayout.PackedTokens),
            Query = query,
            Key = key,
            Value = View(golden.Tensors["value"], KvLayout.PackedTokens),
        };
        var sketch = Sketch.FromValues(golden.Tensors["phi"].ToFloat32(), shape, 48);
        using var selection = LayerCompressor.Select(backend, plan, inputs, sketch: sketch);

        Assert.InRange(Arrays.RelativeError(Arrays.Copy(selection.Leverage), SingularValueLeverage.Of(plan, golden.Tensors["key_pre_rope"].ToFloat32(), sketch)), 0, 1e-5);
        Assert.InRange(Arrays.RelativeError(Arrays.Copy(selection.Leverage), golden.Tensors["leverage"].ToFloat32()), 0, 1e-5);
        Assert.InRange(Arrays.RelativeError(Arrays.Copy(selection.Attention), golden.Tensors["attention"].ToFloat32()), 0, 1e-5);
        float[] goldenScores = golden.Tensors["scores"].ToFloat32(), scores = Arrays.Copy(selection.Scores);
        for (int i = 0; i < scores.Length; i++)
            Assert.Equal(float.IsPositiveInfinity(goldenScores[i]), float.IsPositiveInfinity(scores[i]));
        Assert.InRange(ScoreError(scores, goldenScores, out double largest), 0, 1e-4);

        int[] kept = golden.Tensors["kept_indices"].ToInt32(), offsets = golden.Tensors["kept_offsets"].ToInt32();
        var fromGolden = SelectFrom(backend, plan, goldenScores);
        Assert.Equal(kept, fromGolden.Indices);
        Assert.Equal(offsets, fromGolden.Offsets);
        AssertSameUpToError(plan, goldenScores, largest, kept, selection, offsets);
    }

    private static float[] Attention(KvBackend backend, LayerPlan plan, TensorView query, TensorView key)
    {
        using var attention = backend.Allocate<float>(plan.Shape.Tokens * plan.Shape.KvHeads);
        backend.AttentionScores(plan, query, key, attention.View);
        return Arrays.Copy(attention);
    }

    private static (int[] Indices, int[] Offsets) SelectFrom(KvBackend backend, LayerPlan plan, float[] goldenScores)
    {
        using var scores = backend.Allocate<float>(goldenScores.Length);
        using var indices = backend.Allocate<int>(plan.KeptPairs);
        using var offsets = backend.Allocate<int>(plan.Shape.Sequences * plan.Shape.KvHeads + 1);
        goldenScores.CopyTo(scores.View.AsSpan());
        backend.Select(plan, scores.View, indices.View, offsets.View);
        return (Arrays.Copy(indices), Arrays.Copy(offsets));
    }

    /// <summary>Relative L2 and largest absolute error over scores that are finite in both.</summary>
    private static double ScoreError(float[] actual, float[] expected, out double largest)
    {
        int[] finite = [.. Enumerable.Range(0, actual.Length).Where(i => float.IsFinite(actual[i]) && float.IsFinite(expected[i]))];
        largest = finite.Max(i => Math.Abs((double)actual[i] - expected[i]));
        return Arrays.RelativeError([.. finite.Select(i => actual[i])], [.. finite.Select(i => expected[i])]);
    }

    /// <summary>A token that is kept by one and not by the other has a score within the measured error of the lowest kept score.</summary>
    private static void AssertSameUpToError(LayerPlan plan, float[] goldenScores, double largestError, int[] kept, LayerSelection selection, int[]? offsets = null)
    {
        int heads = plan.Shape.KvHeads;
        int perHead = kept.Length / heads;
        offsets ??= [.. Enumerable.Range(0, heads + 1).Select(h => h * perHead)];
        var expected = Pairs(kept, offsets);
        var actual = Pairs(Arrays.Copy(selection.KeptIndices), Arrays.Copy(selection.KeptOffsets));
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            var differing = actual.Where(p => p.B == b).ToHashSet();
            differing.SymmetricExceptWith(expected.Where(p => p.B == b));
            foreach (var (_, h, t) in differing)
            {
                float threshold = expected.Where(p => p.B == b && (plan.Options.SelectionScope != SelectionScope.Head || p.H == h)).Min(p => Score(p));
                Assert.InRange(Math.Abs(Score((b, h, t)) - threshold), 0, 2 * largestError);
            }
        }

        float Score((int B, int H, int T) p) => goldenScores[(plan.Shape.CuSeqlens[p.B] + p.T) * heads + p.H];

        HashSet<(int B, int H, int T)> Pairs(int[] indices, int[] starts) =>
            [.. from segment in Enumerable.Range(0, starts.Length - 1)
                from i in Enumerable.Range(starts[segment], starts[segment + 1] - starts[segment])
                select (segment / heads, segment % heads, indices[i])];
    }

    private static TensorView View(SafetensorsTensor tensor, KvLayout layout)
    {
        var type = tensor.Type switch { SafetensorsType.F32 => ElementType.Float32, SafetensorsType.F16 => ElementType.Float16, _ => ElementType.BFloat16 };
        int[] s = [.. tensor.Shape.Select(x => (int)x)];
        return layout == KvLayout.PackedTokens
            ? TensorView.Packed(tensor.Address, type, s[0], s[1], s[2])
            : TensorView.BatchHeadSequence(tensor.Address, type, s[0], s[1], s[2], s[3]);
    }

    /// <summary>Keys <c>[B, H, S, D]</c> as packed <c>[B·S, H, D]</c>.</summary>
    private static float[] PackedKeys(SafetensorsTensor keys, int batch, int heads, int tokens)
    {
        float[] values = keys.ToFloat32(), packed = new float[values.Length];
        int dim = values.Length / (batch * heads * tokens);
        for (int b = 0; b < batch; b++)
            for (int h = 0; h < heads; h++)
                for (int t = 0; t < tokens; t++)
                    Array.Copy(values, ((b * heads + h) * tokens + t) * dim, packed, ((b * tokens + t) * heads + h) * dim, dim);
        return packed;
    }

    /// <summary>Swaps the inner dimensions of <c>[outer, rows, columns]</c>: tokens and heads, either way.</summary>
    private static float[] HeadMajor(ReadOnlySpan<float> scores, int outer, int rows, int columns)
    {
        var swapped = new float[scores.Length];
        for (int b = 0; b < outer; b++)
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < columns; c++)
                    swapped[(b * columns + c) * rows + r] = scores[(b * rows + r) * columns + c];
        return swapped;
    }
}
