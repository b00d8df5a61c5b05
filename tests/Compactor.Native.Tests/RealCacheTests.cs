using Compactor.Native.Compression;
using Compactor.Native.Io;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests;

/// <summary>The bundled dump, a cache of a trained model on a real prompt: every backend decides the same.</summary>
public class RealCacheTests
{
    private static readonly string Dump = Path.Combine(AppContext.BaseDirectory, "data", "mixed.safetensors");

    public static IEnumerable<TheoryDataRow<string, string>> BackendsAndPresets =>
        from backend in Backends.Names.Where(n => n != "reference")
        from preset in CompressionPresets.ByName.Keys
        select new TheoryDataRow<string, string>(backend, preset);

    [Theory]
    [MemberData(nameof(BackendsAndPresets))]
    public void Scores_and_selection_agree_with_the_reference(string backendName, string preset)
    {
        using var dump = KvDump.Open(Dump);
        using var reference = Backends.Create("reference");
        using var backend = Backends.Create(backendName);
        foreach (var layer in dump.Layers)
        {
            var plan = new LayerPlan(layer.Shape, CompressionPresets.ByName[preset], Budget.Retention(0.3));
            Run expected = Run.Of(reference, plan, layer.Inputs), actual = Run.Of(backend, plan, layer.Inputs);
            // The Gram matrix of a trained model has a condition number above 1e5, which magnifies the float32 rounding of X and L⁻¹.
            Assert.InRange(Arrays.RelativeError(actual.Leverage, expected.Leverage), 0, 3e-4);
            Assert.InRange(Arrays.RelativeError(actual.Attention, expected.Attention), 0, 1e-5);
            var differing = expected.Kept(0, layer.Shape.KvHeads);
            differing.SymmetricExceptWith(actual.Kept(0, layer.Shape.KvHeads));
            float threshold = expected.Kept(0, layer.Shape.KvHeads).Min(Score);
            Assert.All(differing, pair => Assert.Equal(threshold, Score(pair), 1e-3));

            float Score((int Token, int Head) pair) => expected.Scores![pair.Token * layer.Shape.KvHeads + pair.Head];
        }
    }

    [Fact]
    public void Keys_after_rope_give_the_leverage_of_keys_before_it()
    {
        using var dump = KvDump.Open(Dump);
        using var backend = Backends.Create("cpu128");
        foreach (var layer in dump.Layers)
        {
            var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.3));
            var rotated = layer.Inputs with { KeyPreRope = null, Rotary = RotaryEmbedding.FromTheta(double.Parse(dump.File.Metadata["rope_theta"]), layer.Shape.HeadDim) };
            Run before = Run.Of(backend, plan, layer.Inputs), after = Run.Of(backend, plan, rotated);
            // The dump's keys are float16: rounding after the rotation is all that differs.
            Assert.InRange(Arrays.RelativeError(after.Leverage, before.Leverage), 0, 5e-3);
            Assert.InRange(before.Kept(0, 2).Except(after.Kept(0, 2)).Count(), 0, before.Indices.Length / 100);
        }
    }
}
