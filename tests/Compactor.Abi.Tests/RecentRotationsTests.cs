using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Abi.Tests;

public class RecentRotationsTests
{
    private readonly RecentRotations _recent = new();

    [Fact]
    public void The_same_description_gives_the_same_object_and_any_other_does_not()
    {
        float[] cos = [1, 0.5f], sin = [0, 0.5f];
        Func<RotaryEmbedding>[] described =
        [
            () => _recent.OfPositions(RotaryStyle.HalfRotation, [1, 0.3], []),
            () => _recent.OfPositions(RotaryStyle.Interleaved, [1, 0.3], []),
            () => _recent.OfPositions(RotaryStyle.HalfRotation, [1, 0.31], []),
            () => _recent.OfPositions(RotaryStyle.HalfRotation, [1, 0.3, 0.2, 0.1], []),
            () => _recent.OfPositions(RotaryStyle.HalfRotation, [1, 0.3], [0, 1, 2]),
            () => _recent.OfPositions(RotaryStyle.HalfRotation, [1, 0.3], [0, 1, 3]),
            () => _recent.OfPositions(RotaryStyle.HalfRotation, [1, 0.25], []),
            () => _recent.OfPositions(RotaryStyle.HalfRotation, [1, 0.125], []),
            () => _recent.OfTables(RotaryStyle.HalfRotation, 4, cos, sin),
            () => _recent.OfTables(RotaryStyle.HalfRotation, 4, [1, 0.25f], sin),
        ];
        var made = new List<RotaryEmbedding>();
        foreach (var describe in described)
        {
            var embedding = describe();
            Assert.Same(embedding, describe());
            made.Add(embedding);
        }
        Assert.Equal(made.Count, made.Distinct().Count());
        // the four that were used last are kept
        Assert.Same(made[^4], described[^4]());
        Assert.NotSame(made[0], described[0]());
        Assert.Same(made[^4], described[^4]());
        Assert.NotSame(made[^3], described[^3]());
    }

    [Fact]
    public void What_is_refused_is_not_kept() =>
        Assert.All(Enumerable.Range(0, 2), _ => Assert.Throws<Compactor.Native.CompactorException>(() => _recent.OfPositions(RotaryStyle.HalfRotation, [double.NaN, 1], [])));
}
