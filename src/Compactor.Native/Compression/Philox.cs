namespace Compactor.Native.Compression;

/// <summary>
/// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
/// (SC 2011): a 128-bit counter and a 64-bit key give 128 random bits, in any order and on any device.
/// </summary>
public static class Philox
{
    /// <summary>The four 32-bit words of one counter value.</summary>
    public static (uint X0, uint X1, uint X2, uint X3) Block(uint c0, uint c1, uint c2, uint c3, ulong key)
    {
        uint k0 = (uint)key, k1 = (uint)(key >> 32);
        for (int round = 0; round < 10; round++)
        {
            ulong p0 = 0xD2511F53UL * c0, p1 = 0xCD9E8D57UL * c2;
            (c0, c1, c2, c3) = ((uint)(p1 >> 32) ^ c1 ^ k0, (uint)p1, (uint)(p0 >> 32) ^ c3 ^ k1, (uint)p0);
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        return (c0, c1, c2, c3);
    }

    /// <summary>Four independent N(0, 1) variates of one counter value, by Box and Muller in double.</summary>
    public static void Normals(uint c0, uint c1, uint c2, uint c3, ulong key, Span<double> four)
    {
        var (x0, x1, x2, x3) = Block(c0, c1, c2, c3, key);
        Pair(x0, x1, four);
        Pair(x2, x3, four[2..]);

        static void Pair(uint a, uint b, Span<double> two)
        {
            double radius = Math.Sqrt(-2 * Math.Log((a + 1.0) * (1.0 / 4294967296.0)));
            var (sin, cos) = Math.SinCos(2 * Math.PI * b * (1.0 / 4294967296.0));
            two[0] = radius * cos;
            two[1] = radius * sin;
        }
    }
}
