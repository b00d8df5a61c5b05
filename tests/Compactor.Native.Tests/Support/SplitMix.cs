namespace Compactor.Native.Tests.Support;

/// <summary>SplitMix64: a generator that is as quick to seed as to use.</summary>
internal struct SplitMix(ulong seed)
{
    private const ulong Step = 0x9E3779B97F4A7C15;

    // Mixed, or the numbers of the next seed would be those of this one, one place on.
    private ulong _state = Mix(seed + Step);

    public ulong Next() => Mix(_state += Step);

    /// <summary>About normal, of mean 0, variance 1 and at most 3.5 away: the sum of four uniform numbers. A logarithm and a cosine a number would take more time than most tests do.</summary>
    public float Normal()
    {
        ulong z = Next();
        int sum = (int)(z & 0xFFFF) + (int)(z >> 16 & 0xFFFF) + (int)(z >> 32 & 0xFFFF) + (int)(z >> 48);
        return (sum - 2 * 65535) * (1.7320508f / 65536);
    }

    private static ulong Mix(ulong z)
    {
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return z ^ z >> 31;
    }
}
