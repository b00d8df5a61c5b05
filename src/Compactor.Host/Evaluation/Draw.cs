namespace Compactor.Host.Evaluation;

/// <summary>Seeded draws (SplitMix64) that are the same on every machine and runtime.</summary>
/// <param name="seed">Seed; different seeds give independent sequences.</param>
public sealed class Draw(ulong seed)
{
    private ulong _state = seed;

    /// <summary>64 random bits.</summary>
    public ulong Bits()
    {
        ulong z = _state += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return z ^ z >> 31;
    }

    /// <summary>A number from 0 to <paramref name="count"/> - 1.</summary>
    public int Below(int count) => (int)Math.BigMul(Bits(), (ulong)count, out _);

    /// <summary>A number from <paramref name="low"/> to <paramref name="high"/>.</summary>
    public int Between(int low, int high) => low + Below(high - low + 1);

    /// <summary>A number in [0, 1).</summary>
    public double Unit() => (Bits() >> 11) * (1.0 / (1L << 53));

    /// <summary>One of several.</summary>
    public T Of<T>(IReadOnlyList<T> choices) => choices[Below(choices.Count)];

    /// <summary>Several different ones, in random order.</summary>
    public T[] Several<T>(IReadOnlyList<T> choices, int count)
    {
        T[] drawn = [.. choices];
        for (int i = 0; i < count; i++)
        {
            int other = Between(i, drawn.Length - 1);
            (drawn[i], drawn[other]) = (drawn[other], drawn[i]);
        }
        return drawn[..count];
    }
}
