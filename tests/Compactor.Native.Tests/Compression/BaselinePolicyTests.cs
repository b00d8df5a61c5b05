using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public sealed unsafe class BaselinePolicyTests : IDisposable
{
    private readonly CpuBackend _backend = new(1);

    public void Dispose() => _backend.Dispose();

    private int[] Kept(SelectionPolicy policy, int[] cuSeqlens, Budget budget, SelectionScope scope = SelectionScope.Sequence, long[]? ids = null, int layer = 0)
    {
        var shape = new LayerShape(cuSeqlens, 2, 2, 16, ElementType.Float32) { SequenceIds = ids, Layer = layer };
        var options = CompressionPresets.Paper with { SelectionScope = scope, ProtectedBudget = ProtectedBudget.Inside };
        var plan = new LayerPlan(shape, options, budget).WithoutProtection();
        fixed (float* data = new float[shape.Tokens * 2 * 16])
        {
            var view = TensorView.Packed((nint)data, ElementType.Float32, shape.Tokens, 2, 16);
            using var selection = LayerCompressor.Select(_backend, plan, new LayerInputs { Key = view, Value = view }, policy);
            return selection.KeptIndices.View.AsSpan().ToArray();
        }
    }

    [Theory]
    [InlineData(SelectionScope.Sequence)]
    [InlineData(SelectionScope.Head)]
    [InlineData(SelectionScope.Token)]
    public void Recent_keeps_the_last_tokens_of_each_head(SelectionScope scope) =>
        Assert.Equal([.. Enumerable.Range(70, 30), .. Enumerable.Range(70, 30)], Kept(SelectionPolicy.Recent, [0, 100], Budget.Tokens(30), scope));

    [Fact]
    public void Random_depends_on_seed_layer_and_sequence_id_and_not_on_the_batch()
    {
        var alone = Kept(SelectionPolicy.Random(1), [0, 100], Budget.Tokens(30), ids: [7]);
        Assert.Equal(60, alone.Length);
        Assert.Equal(alone, Kept(SelectionPolicy.Random(1), [0, 100], Budget.Tokens(30), ids: [7]));
        Assert.Equal(alone, Kept(SelectionPolicy.Random(1), [0, 50, 150], Budget.Tokens(30), ids: [3, 7])[60..]);
        Assert.NotEqual(alone, Kept(SelectionPolicy.Random(2), [0, 100], Budget.Tokens(30), ids: [7]));
        Assert.NotEqual(alone, Kept(SelectionPolicy.Random(1), [0, 100], Budget.Tokens(30), ids: [8]));
        Assert.NotEqual(alone, Kept(SelectionPolicy.Random(1), [0, 100], Budget.Tokens(30), ids: [7], layer: 1));
    }

    [Fact]
    public void Random_favours_no_part_of_a_sequence() =>
        Assert.InRange(Kept(SelectionPolicy.Random(5), [0, 10_000], Budget.Retention(0.5), SelectionScope.Head).Average(), 4800, 5200);
}
