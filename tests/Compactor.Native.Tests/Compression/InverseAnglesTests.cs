using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public sealed unsafe class InverseAnglesTests
{
    [Theory]
    [InlineData(2)]
    [InlineData(18)]
    [InlineData(128)]
    public void Sums_of_angles_are_the_angles_of_positions(int rotaryDim)
    {
        int[] positions = [0, 1, 63, 64, 65, 127, 4095, 4096, 3, 3, 131_071, 1_000_000, 64, .. Enumerable.Range(5_000, 200)];
        foreach (var rotary in new[] { RotaryEmbedding.FromTheta(10_000, rotaryDim), RotaryEmbedding.FromTheta(500_000, rotaryDim, positions: positions) })
            AssertRows(rotary, positions, row => (row, positions[row]));
    }

    [Fact]
    public void Tables_are_divided_by_their_power()
    {
        const int pairs = 5, rows = 9;
        var random = new Random(3);
        float[] cos = [.. Enumerable.Range(0, rows * pairs).Select(_ => random.NextSingle() + 0.5f)], sin = [.. Enumerable.Range(0, rows * pairs).Select(_ => random.NextSingle() - 0.5f)];
        AssertRows(RotaryEmbedding.FromTables(cos, sin, 2 * pairs), [.. Enumerable.Range(0, rows)], row => (row, row));
    }

    private static void AssertRows(RotaryEmbedding rotary, int[] positions, Func<int, (int PackedToken, int Token)> of)
    {
        int pairs = rotary.RotaryDim / 2;
        var rows = new float[positions.Length * rotary.RotaryDim];
        fixed (float* to = rows)
            new InverseAngles(rotary).Fill(0, positions.Length, of, to);
        double[] cos = new double[pairs], sin = new double[pairs];
        for (int row = 0; row < positions.Length; row++)
        {
            rotary.Angles(of(row).PackedToken, of(row).Token, cos, sin);
            for (int p = 0; p < pairs; p++)
            {
                double power = cos[p] * cos[p] + sin[p] * sin[p];
                // an angle itself is known to half a unit in its last place, 6e-11 at position 1,000,000
                Assert.Equal(cos[p] / power, rows[row * rotary.RotaryDim + p], 6e-8 * Math.Max(1, 1 / power) + 1e-9);
                Assert.Equal(sin[p] / power, rows[row * rotary.RotaryDim + pairs + p], 6e-8 * Math.Max(1, 1 / power) + 1e-9);
            }
        }
    }
}
