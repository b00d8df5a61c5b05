using Compactor.Native.Compression;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Native.Tests.Io;

public sealed class KvDumpTests : IDisposable
{
    private const SafetensorsType BF16 = SafetensorsType.BF16, F32 = SafetensorsType.F32;
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public unsafe void A_packed_golden_file_is_a_dump()
    {
        using var dump = KvDump.Open(Golden("spec_paper_n512_1152hq4hk2d64r0.5"));
        var layer = Assert.Single(dump.Layers);
        Assert.Equal(0, layer.Index);
        Assert.Equal([0, 512, 1664], dump.CuSeqlens);
        Assert.Equal([0, 512, 1664], layer.Shape.CuSeqlens);
        Assert.Equal((4, 2, 64, ElementType.BFloat16, 0), (layer.Shape.QueryHeads, layer.Shape.KvHeads, layer.Shape.HeadDim, layer.Shape.ElementType, layer.Shape.Layer));
        layer.Inputs.Validate(layer.Shape);
        Assert.Null(layer.Inputs.Rotary);
        Assert.Null(layer.ProbeQuery);
        Assert.Null(dump.CosSin);
        Assert.Equal(48, dump.Phi!.Value.Columns);
        Assert.Equal(1, Sketch.FromValues(dump.Phi.Value.Values, layer.Shape, dump.Phi.Value.Columns).Count);
        Assert.Equal(["attention", "kept_indices", "kept_offsets", "leverage", "scores"], dump.UnusedTensors);
        Assert.Equal("paper", dump.File.Metadata["preset"]);
        Assert.Equal(["key", "key_pre_rope", "query", "value"], layer.Tensors.Keys.Order());

        float[] query = layer.Tensors["query"].ToFloat32();
        ushort* row = (ushort*)layer.Inputs.Query!.Value.Row(1, 512, 700, 3);
        Assert.Equal(query[((512 + 700) * 4 + 3) * 64 + 5], BitConverter.Int32BitsToSingle(row[5] << 16));
    }

    [Fact]
    public unsafe void A_kvpress_golden_file_is_a_dump_of_batch_head_sequence()
    {
        using var dump = KvDump.Open(Golden("kvpress_compactor_hq4hk2s524d64c256removed0.5"), KvLayout.BatchHeadSequence);
        var layer = Assert.Single(dump.Layers);
        Assert.Equal([0, 524], dump.CuSeqlens);
        Assert.Equal((4, 2, 64), (layer.Shape.QueryHeads, layer.Shape.KvHeads, layer.Shape.HeadDim));
        layer.Inputs.Validate(layer.Shape);
        Assert.Equal(ElementType.Float32, layer.Inputs.Query!.Value.ElementType);
        Assert.Equal(2, Sketch.FromValues(dump.Phi!.Value.Values, layer.Shape, dump.Phi.Value.Columns).Count);
        Assert.Equal(["kept_per_head", "query_pre_rope", "scores"], dump.UnusedTensors);

        // the tables undo the rotation: rotating key_pre_rope back from key gives it again
        var (cos, sin, rotaryDim) = dump.CosSin!.Value;
        Assert.Equal(64, rotaryDim);
        RotaryEmbedding.FromTables(cos, sin, rotaryDim).Validate(layer.Shape);
        ushort* before = (ushort*)layer.Inputs.KeyPreRope!.Value.Row(0, 0, 301, 1), after = (ushort*)layer.Inputs.Key.Row(0, 0, 301, 1);
        for (int i = 0; i < 32; i++)
        {
            float x = Value(before, i), y = Value(before, i + 32), c = cos[301 * 32 + i], s = sin[301 * 32 + i];
            Assert.Equal(c * x - s * y, Value(after, i), 0.02f);
            Assert.Equal(s * x + c * y, Value(after, i + 32), 0.02f);
        }

        static float Value(ushort* row, int i) => BitConverter.Int32BitsToSingle(row[i] << 16);
    }

    [Theory]
    [InlineData("kvpress_leverage_b2h2s1000d128k48", KvLayout.BatchHeadSequence, "tensor 'key' is missing")]
    [InlineData("vllm_leverage_n512_1024h2d128k48c512", KvLayout.PackedTokens, "tensor 'key' is missing")]
    [InlineData("kvpress_noncausal_b1h2s256d64c64", KvLayout.BatchHeadSequence, "tensor 'value' is missing")]
    [InlineData("kvpress_compactor_hq4hk2s524d64c256removed0.5", KvLayout.PackedTokens, "'key' (BF16 [1, 2, 524, 64]) has 4 dimensions; expected [N, H, D]. Open the dump with layout bhsd")]
    [InlineData("spec_paper_n512_1152hq4hk2d64r0.5", KvLayout.BatchHeadSequence, "has 3 dimensions; expected [B, H, S, D]. Open the dump with layout nhd")]
    public void An_incomplete_or_otherwise_laid_out_golden_file_is_refused(string name, KvLayout layout, string problem)
    {
        var e = Assert.Throws<CompactorException>(() => KvDump.Open(Golden(name), layout));
        Assert.Equal(CompactorStatus.InvalidFile, e.Status);
        Assert.Contains(name, e.Message);
        Assert.Contains(problem, e.Message);
    }

    [Fact]
    public void Layers_come_in_order_of_their_numbers()
    {
        using var dump = Open(w =>
        {
            foreach (int i in (int[])[10, 9, 11])
            {
                Add(w, $"layers.{i}.key", BF16, 5, 2, 16);
                Add(w, $"layers.{i}.value", BF16, 5, 2, 16);
            }
            Add(w, "layers.9.probe_query", F32, 3, 4, 16);
            Add(w, "layers.09.key", F32, 1);
            Add(w, "layers.9.norm", F32, 1);
            w.Add("token_ids", [1], [7]);
        });
        Assert.Equal([9, 10, 11], dump.Layers.Select(l => l.Index));
        Assert.Equal([9, 10, 11], dump.Layers.Select(l => l.Shape.Layer));
        Assert.Equal([0, 5], dump.CuSeqlens);
        Assert.Equal(0, dump.Layers[0].Shape.QueryHeads);
        Assert.Equal((3, 4, ElementType.Float32), (dump.Layers[0].ProbeQuery!.Value.Tokens, dump.Layers[0].ProbeQuery!.Value.Heads, dump.Layers[0].ProbeQuery!.Value.ElementType));
        Assert.Null(dump.Layers[1].ProbeQuery);
        Assert.Null(dump.Layers[0].Inputs.Query);
        Assert.Null(dump.Layers[0].Inputs.KeyPreRope);
        Assert.Null(dump.Phi);
        Assert.Equal(["layers.09.key", "layers.9.norm", "token_ids"], dump.UnusedTensors);
    }

    [Fact]
    public void A_batch_has_a_view_with_strides_and_equal_lengths()
    {
        using var dump = Open(w =>
        {
            Add(w, "key", BF16, 3, 2, 5, 16);
            Add(w, "value", BF16, 3, 2, 5, 16);
            Add(w, "query", BF16, 3, 4, 5, 16);
            Add(w, "probe_query", BF16, 3, 4, 7, 16);
            w.Add("cu_seqlens", [4], [0, 5, 10, 15]);
            Add(w, "phi", SafetensorsType.F16, 3, 2, 16, 32);
            w.Add("cos", [1, 5, 8], [.. Enumerable.Range(0, 40).Select(i => 1f + i)]);
            w.Add("sin", [1, 5, 8], new float[40]);
        }, KvLayout.BatchHeadSequence);
        var layer = dump.Layers[0];
        Assert.Equal([0, 5, 10, 15], dump.CuSeqlens);
        Assert.Equal(TensorView.BatchHeadSequence(layer.Tensors["key"].Address, ElementType.BFloat16, 3, 2, 5, 16), layer.Inputs.Key);
        Assert.Equal(21, layer.ProbeQuery!.Value.Tokens);
        Assert.Equal((3 * 2 * 16 * 32, 32), (dump.Phi!.Value.Values.Length, dump.Phi.Value.Columns));
        Assert.Equal((120, 16), (dump.CosSin!.Value.Cos.Length, dump.CosSin.Value.RotaryDim));
        Assert.Equal(dump.CosSin.Value.Cos[..40], dump.CosSin.Value.Cos[80..]);
        layer.Inputs.Validate(layer.Shape);
    }

    [Fact]
    public void Rotary_tables_that_repeat_their_halves_are_halved()
    {
        using var partial = Open(w =>
        {
            Cache(w, 2);
            w.Add("cos", [2, 8], [1f, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8]);
            w.Add("sin", [2, 8], new float[16]);
        });
        Assert.Equal([1f, 2, 3, 4, 5, 6, 7, 8], partial.CosSin!.Value.Cos);
        Assert.Equal((8, 8), (partial.CosSin.Value.Sin.Length, partial.CosSin.Value.RotaryDim));
        using var pairs = Open(w =>
        {
            Cache(w, 1);
            w.Add("cos", [1, 1, 8], [1f, 2, 3, 4, 5, 6, 7, 8]);
            w.Add("sin", [1, 1, 8], new float[8]);
        });
        Assert.Equal((8, 16), (pairs.CosSin!.Value.Cos.Length, pairs.CosSin.Value.RotaryDim));
    }

    [Fact]
    public void An_empty_packed_cache_opens()
    {
        using var dump = Open(w => Cache(w, 0));
        Assert.Equal([0, 0], dump.CuSeqlens);
        Assert.Equal(0, dump.Layers[0].Shape.Tokens);
    }

    [Fact]
    public void A_dump_may_hold_some_layers_only()
    {
        using var dump = Open(w =>
        {
            Cache(w, 5, "layers.12.");
            Cache(w, 5, "layers.3.");
        });
        Assert.Equal([3, 12], dump.Layers.Select(layer => layer.Index));
    }

    [Fact]
    public void Missing_and_stray_tensors_are_named()
    {
        Rejects(w => Add(w, "other", F32, 1), "it holds no layer; a KV dump has tensors 'key' and 'value'");
        Rejects(w => Add(w, "value", F32, 5, 2, 16), "tensor 'key' is missing");
        Rejects(w => Add(w, "layers.3.key", F32, 5, 2, 16), "tensor 'layers.3.value' is missing");
        Rejects(w =>
        {
            Cache(w, 5, "layers.0.");
            Add(w, "query", BF16, 5, 2, 16);
        }, "also 'query' (BF16 [5, 2, 16]) without a layer");
        Rejects(w =>
        {
            Cache(w, 5);
            Add(w, "cos", F32, 5, 8);
        }, "tensor 'sin' is missing");
    }

    [Theory]
    [InlineData("key_pre_rope", new long[] { 5, 2, 32 }, "'key_pre_rope' (BF16 [5, 2, 32]) does not fit 'key' (BF16 [5, 2, 16]); expected [5, 2, 16]")]
    [InlineData("key_pre_rope", new long[] { 5, 1, 16 }, "'key_pre_rope' (BF16 [5, 1, 16]) does not fit")]
    [InlineData("key_pre_rope", new long[] { 5, 32 }, "'key_pre_rope' (BF16 [5, 32]) has 2 dimensions; expected [N, H, D]")]
    [InlineData("query", new long[] { 4, 2, 16 }, "'query' (BF16 [4, 2, 16]) does not fit 'key' (BF16 [5, 2, 16]); expected [5, 2, 16]")]
    [InlineData("query", new long[] { 5, 3, 16 }, "'query' (BF16 [5, 3, 16]) has 3 heads and 'key' (BF16 [5, 2, 16]) 2; query heads must be a multiple")]
    [InlineData("query", new long[] { 5, 0, 16 }, "has a dimension of 0")]
    [InlineData("query", new long[] { 5, 4, 32 }, "expected [5, 4, 16]")]
    [InlineData("probe_query", new long[] { 9, 3, 16 }, "'probe_query' (BF16 [9, 3, 16]) has 3 heads")]
    [InlineData("probe_query", new long[] { 9, 4, 8 }, "expected [9, 4, 16]")]
    [InlineData("phi", new long[] { 32, 16 }, "'phi' (BF16 [32, 16]) does not fit 'key' (BF16 [5, 2, 16]); expected [16, k] or [1, 2, 16, k]")]
    [InlineData("phi", new long[] { 16, 0 }, "'phi' (BF16 [16, 0]) does not fit")]
    [InlineData("phi", new long[] { 2, 2, 16, 16 }, "expected [16, k] or [1, 2, 16, k]")]
    [InlineData("phi", new long[] { 2, 16, 16 }, "expected [16, k] or [1, 2, 16, k]")]
    [InlineData("cu_seqlens", new long[] { 2 }, "'cu_seqlens' (BF16 [2]) must be I32 [B + 1]")]
    public void A_tensor_of_another_shape_is_refused(string name, long[] shape, string problem) => Rejects(w =>
    {
        Cache(w, 5);
        Add(w, name, BF16, shape);
    }, problem);

    [Theory]
    [InlineData(new[] { 0, 4 }, "'cu_seqlens' (I32 [2]) ends at 4 tokens, but 'key' (BF16 [5, 2, 16]) holds 5")]
    [InlineData(new[] { 1, 5 }, "starts with 1; it must start with 0")]
    [InlineData(new[] { 0, 3, 2, 5 }, "falls from 3 to 2 at entry 2")]
    [InlineData(new[] { 0 }, "must be I32 [B + 1]")]
    public void Wrong_sequence_offsets_are_refused(int[] cuSeqlens, string problem) => Rejects(w =>
    {
        Cache(w, 5);
        w.Add("cu_seqlens", [cuSeqlens.Length], cuSeqlens);
    }, problem);

    [Theory]
    [InlineData(4, 8, "'cos' (F32 [4, 8]) does not fit 'key' (BF16 [5, 2, 16]); expected a row of at most 16 for each of 5 tokens")]
    [InlineData(5, 18, "expected a row of at most 16")]
    [InlineData(5, 10, "holds 10 pairs, more than head dimension 16 has, and its rows do not repeat their first half")]
    [InlineData(5, 16, "holds 16 pairs")]
    public void Rotary_tables_that_do_not_fit_are_refused(int rows, int columns, string problem) => Rejects(w =>
    {
        Cache(w, 5);
        w.Add("cos", [rows, columns], [.. Enumerable.Range(0, rows * columns).Select(i => (float)i)]);
        w.Add("sin", [rows, columns], new float[rows * columns]);
    }, problem);

    [Fact]
    public void Layers_of_different_tokens_are_refused() => Rejects(w =>
    {
        Cache(w, 5, "layers.0.");
        Cache(w, 6, "layers.1.");
    }, "'layers.1.key' (BF16 [6, 2, 16]) and 'layers.0.key' (BF16 [5, 2, 16]) hold different tokens");

    [Fact]
    public void Padded_lengths_of_a_batch_are_refused() => Rejects(w =>
    {
        Add(w, "key", BF16, 2, 1, 5, 16);
        Add(w, "value", BF16, 2, 1, 5, 16);
        w.Add("cu_seqlens", [3], [0, 3, 8]);
    }, "differs from the equal lengths of 'key' (BF16 [2, 1, 5, 16])", KvLayout.BatchHeadSequence);

    [Fact]
    public void A_huge_batch_without_elements_is_refused_at_once() => Rejects(w =>
    {
        Add(w, "key", BF16, 2_000_000_000, 0, 1, 16);
        Add(w, "value", BF16, 2_000_000_000, 0, 1, 16);
    }, "has a dimension of 0", KvLayout.BatchHeadSequence);

    [Fact]
    public void What_scoring_does_not_serve_is_refused_by_name()
    {
        Unsupported(w =>
        {
            Add(w, "key", BF16, 5, 2, 32);
            Add(w, "value", BF16, 5, 2, 16);
        }, "'value' (BF16 [5, 2, 16]) has dimension 16 and 'key' (BF16 [5, 2, 32]) 32; caches whose key and value dimensions differ (MLA)");
        Unsupported(w =>
        {
            Add(w, "key", BF16, 5, 2, 16);
            Add(w, "value", F32, 5, 2, 16);
        }, "'value' (F32 [5, 2, 16]) and 'key' (BF16 [5, 2, 16]) differ in type");
        Unsupported(w =>
        {
            Add(w, "key", SafetensorsType.F8_E4M3, 5, 2, 16);
            Add(w, "value", SafetensorsType.F8_E4M3, 5, 2, 16);
        }, "'key' (F8_E4M3 [5, 2, 16]) is not a type that scoring takes");
        Unsupported(w =>
        {
            Add(w, "key", BF16, 5, 2, 24);
            Add(w, "value", BF16, 5, 2, 24);
        }, "'key' (BF16 [5, 2, 24]): Head dimension 24");
        Unsupported(w =>
        {
            Cache(w, 5);
            Add(w, "query", BF16, 5, 34, 16);
        }, "17 query heads share a KV head");

        void Unsupported(Action<SafetensorsWriter> write, string problem) => Rejects(write, problem, status: CompactorStatus.Unsupported);
    }

    [Fact]
    public void A_refused_dump_is_closed()
    {
        Rejects(w => Add(w, "value", F32, 5, 2, 16), "missing");
        using var exclusive = new FileStream(_folder["dump"], FileMode.Open, FileAccess.ReadWrite, FileShare.None);
        Assert.True(exclusive.Length > 0);
    }

    private static string Golden(string name) => Path.Combine(AppContext.BaseDirectory, "data", "golden", name + ".safetensors");

    private static void Cache(SafetensorsWriter writer, int tokens, string prefix = "")
    {
        Add(writer, prefix + "key", BF16, tokens, 2, 16);
        Add(writer, prefix + "value", BF16, tokens, 2, 16);
    }

    private static void Add(SafetensorsWriter writer, string name, SafetensorsType type, params long[] shape) =>
        writer.Add(name, type, shape, new byte[shape.Aggregate((long)type.Size(), (a, b) => a * b)]);

    private KvDump Open(Action<SafetensorsWriter> write, KvLayout layout = KvLayout.PackedTokens)
    {
        var writer = new SafetensorsWriter();
        write(writer);
        writer.Save(_folder["dump"]);
        return KvDump.Open(_folder["dump"], layout);
    }

    private void Rejects(Action<SafetensorsWriter> write, string problem, KvLayout layout = KvLayout.PackedTokens, CompactorStatus status = CompactorStatus.InvalidFile)
    {
        var e = Assert.Throws<CompactorException>(() => Open(write, layout));
        Assert.Contains(problem, e.Message);
        Assert.Contains(_folder["dump"], e.Message);
        Assert.Equal(status, e.Status);
    }
}
