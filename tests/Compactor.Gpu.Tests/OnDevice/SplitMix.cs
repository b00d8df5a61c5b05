namespace Compactor.Gpu.Tests.OnDevice;

/// <summary>SplitMix64: a generator that is as quick to seed as to use, for content made by row.</summary>
internal struct SplitMix(ulong seed)
{
    private ulong _state = seed * 0x9E3779B97F4A7C15;

    public ulong Next()
    {
        ulong z = _state += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return z ^ z >> 31;
    }
}
