using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Io;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.Agreement;

/// <summary>Golden files through the kernels: outputs of the published implementations, and of an independent float64 statement. The large ones are explicit.</summary>
public class GoldenTests
{
    private const long SmallBytes = 200_000;

    private static readonly string s_folder = Path.Combine(AppContext.BaseDirectory, "data", "golden");

    public static IEnumerable<TheoryDataRow<string>> Small(string prefix) => Files(prefix).Where(f => f.Length <= SmallBytes).Select(Row);

    public static IEnumerable<TheoryDataRow<string>> Large(string prefix) => Files(prefix).Where(f => f.Length > SmallBytes).Select(Row);

    [Theory]
    [MemberData(nameof(Small), "kvpress_leverage")]
    public void Leverage_of_kvpress(string file) => CheckKvPressLeverage(file);

    [Theory(Explicit = true)]
    [MemberData(nameof(Large), "kvpress_leverage")]
    public void Leverage_of_kvpress_in_large(string file) => CheckKvPressLeverage(file);

    [Theory(Explicit = true)]
    [MemberData(nameof(Large), "vllm_leverage")]
    public void Leverage_of_compactor_vllm(string file)
    {
        using var golden = Open(file);
        using var device = new Device();
        var (keys, phi) = (device.Copy(View(golden.Tensors["key_pre_rope"], KvLayout.PackedTokens)), golden.Tensors["phi"]);
        var shape = new LayerShape(TestLayer.Offsets(golden.Tensors["context_lens"].ToInt32()), 0, keys.Heads, keys.Dim, keys.ElementType);
        var plan = new LayerPlan(shape, CompressionPresets.CompactorVllm, Budget.Retention(0.5));
        AssertClose(Leverage(device, plan, keys, Sketch.FromValues(phi.ToFloat32(), shape, (int)phi.Shape[1])), golden.Tensors["scores"].ToFloat32());
    }

    [Theory]
    [MemberData(nameof(Small), "kvpress_noncausal")]
    public void Attention_of_kvpress(string file) => CheckAttention(file);

    [Theory]
    [MemberData(nameof(Small), "kvpress_noncausal")]
    public void Attention_of_kvpress_by_the_kernel_for_Hopper(string file) => CheckAttention(file, hopper: true);

    [Theory(Explicit = true)]
    [MemberData(nameof(Large), "kvpress_noncausal")]
    public void Attention_of_kvpress_in_large(string file) => CheckAttention(file);

    [Theory]
    [InlineData("spec_paper_n700_33_5hq4hk2d80r0.3")]
    public void All_stages_of_the_independent_statement(string file) => CheckStatement(file);

    [Theory(Explicit = true)]
    [MemberData(nameof(Large), "spec_")]
    public void All_stages_of_the_independent_statement_in_large(string file) => CheckStatement(file);

    private static void CheckKvPressLeverage(string file)
    {
        using var golden = Open(file);
        using var device = new Device();
        var (keys, phi) = (device.Copy(View(golden.Tensors["key_pre_rope"], KvLayout.BatchHeadSequence)), golden.Tensors["phi"]);
        int batch = (int)phi.Shape[0], heads = (int)phi.Shape[1], tokens = keys.Tokens / batch, k = (int)phi.Shape[3];
        var shape = new LayerShape([.. Enumerable.Range(0, batch + 1).Select(b => b * tokens)], 0, heads, keys.Dim, keys.ElementType);
        var plan = new LayerPlan(shape, CompressionPresets.Paper with { SketchDimension = k }, Budget.Retention(0.5));
        AssertClose(HeadMajor(Leverage(device, plan, keys, Sketch.FromValues(phi.ToFloat32(), shape, k)), batch, tokens, heads), golden.Tensors["scores"].ToFloat32());
    }

    /// <summary>Whole chunks only: a partial one has softmax mass on padded keys there.</summary>
    private static void CheckAttention(string file, bool hopper = false)
    {
        using var golden = Open(file);
        using var device = new Device(hopper: hopper);
        var (key, query) = (device.Copy(View(golden.Tensors["key"], KvLayout.BatchHeadSequence)), device.Copy(View(golden.Tensors["query"], KvLayout.BatchHeadSequence)));
        int chunk = int.Parse(file[(file.LastIndexOf('c') + 1)..]);
        var plan = new LayerPlan(new LayerShape([0, key.Tokens], query.Heads, key.Heads, key.Dim, key.ElementType),
            CompressionPresets.Paper with { AttentionChunk = chunk }, Budget.Retention(0.5));
        var attention = device.New<float>(plan.Shape.Pairs);
        device.Backend.AttentionScores(plan, query, key, attention);
        int whole = key.Tokens / chunk * chunk * key.Heads;
        float[] expected = HeadMajor(golden.Tensors["column_sums"].ToFloat32(), 1, key.Heads, key.Tokens);
        AssertClose(device.Backend.Read(attention)[..whole], expected[..whole]);
    }

    private static void CheckStatement(string file)
    {
        using var golden = Open(file);
        using var device = new Device();
        TensorView Tensor(string name) => device.Copy(View(golden.Tensors[name], KvLayout.PackedTokens));
        var inputs = new LayerInputs { KeyPreRope = Tensor("key_pre_rope"), Query = Tensor("query"), Key = Tensor("key"), Value = Tensor("value") };
        var options = golden.Metadata["preset"] == "paper" ? CompressionPresets.Paper : CompressionPresets.CompactorVllm;
        var shape = new LayerShape(golden.Tensors["cu_seqlens"].ToInt32(), inputs.Query.Value.Heads, inputs.Key.Heads, inputs.Key.Dim, inputs.Key.ElementType);
        var plan = new LayerPlan(shape, options, Budget.Retention(double.Parse(golden.Metadata["retention"])));
        using var selection = LayerCompressor.Select(device.Backend, plan, inputs, sketch: Sketch.FromValues(golden.Tensors["phi"].ToFloat32(), shape, 48));
        selection.Status.ThrowIfFailed();
        AssertClose(device.Backend.Read(selection.Leverage!.View), golden.Tensors["leverage"].ToFloat32());
        AssertClose(device.Backend.Read(selection.Attention!.View), golden.Tensors["attention"].ToFloat32());
        float[] scores = device.Backend.Read(selection.Scores!.View), expected = golden.Tensors["scores"].ToFloat32();
        Assert.Equal(expected.Select(float.IsPositiveInfinity), scores.Select(float.IsPositiveInfinity));
        Assert.InRange(Arrays.RelativeError([.. scores.Where(float.IsFinite)], [.. expected.Where(float.IsFinite)]), 0, 1e-4);

        BufferView<int> indices = device.New<int>(plan.KeptPairs), offsets = device.New<int>(shape.Sequences * shape.KvHeads + 1);
        device.Backend.Select(plan, device.Copy<float>(expected), indices, offsets);
        Assert.Equal(golden.Tensors["kept_indices"].ToInt32(), device.Backend.Read(indices));
        Assert.Equal(golden.Tensors["kept_offsets"].ToInt32(), device.Backend.Read(offsets));
    }

    private static float[] Leverage(Device device, LayerPlan plan, TensorView keys, Sketch sketch)
    {
        var leverage = device.New<float>(plan.Shape.Pairs);
        device.Backend.Leverage(plan, keys, null, sketch, leverage);
        return device.Backend.Read(leverage);
    }

    private static void AssertClose(float[] actual, float[] expected) => Assert.InRange(Arrays.RelativeError(actual, expected), 0, 2e-5);

    private static IEnumerable<FileInfo> Files(string prefix) => new DirectoryInfo(s_folder).EnumerateFiles(prefix + "*.safetensors").OrderBy(f => f.Name, StringComparer.Ordinal);

    private static TheoryDataRow<string> Row(FileInfo file) => new(Path.GetFileNameWithoutExtension(file.Name));

    private static SafetensorsFile Open(string file) => SafetensorsFile.Open(Path.Combine(s_folder, file + ".safetensors"));

    private static TensorView View(SafetensorsTensor tensor, KvLayout layout)
    {
        var type = tensor.Type switch { SafetensorsType.F32 => ElementType.Float32, SafetensorsType.F16 => ElementType.Float16, _ => ElementType.BFloat16 };
        int[] s = [.. tensor.Shape.Select(x => (int)x)];
        return layout == KvLayout.PackedTokens ? TensorView.Packed(tensor.Address, type, s[0], s[1], s[2]) : TensorView.BatchHeadSequence(tensor.Address, type, s[0], s[1], s[2], s[3]);
    }

    /// <summary>Swaps the inner dimensions of <c>[outer, rows, columns]</c>.</summary>
    private static float[] HeadMajor(float[] scores, int outer, int rows, int columns)
    {
        var swapped = new float[scores.Length];
        for (int b = 0; b < outer; b++)
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < columns; c++)
                    swapped[(b * columns + c) * rows + r] = scores[(b * rows + r) * columns + c];
        return swapped;
    }
}
