using System.Text.Json.Nodes;

namespace Compactor.Bench.Peers;

/// <summary>Somebody else's implementation of a subject.</summary>
internal abstract class Peer : IDisposable
{
    /// <summary>Between two runs, so that threads of the one that still spin do not slow the other.</summary>
    public static readonly TimeSpan Pause = TimeSpan.FromMilliseconds(10);

    private const int CacheLine = 64;

    private static readonly byte[] s_elsewhere = new byte[64 << 20];

    public abstract string Name { get; }

    /// <summary>Chooses the fastest way and number of threads; says which, of what version, and all that was timed.</summary>
    public abstract JsonObject Tune();

    /// <summary>Runs once.</summary>
    public abstract double Seconds();

    /// <summary>Runs once as in a round: after a pause, with caches that somebody else filled.</summary>
    protected double Turn()
    {
        for (int i = 0; i < s_elsewhere.Length; i += CacheLine)
            s_elsewhere[i]++;
        Thread.Sleep(Pause);
        return Seconds();
    }

    /// <summary>The result.</summary>
    public abstract float[] Outputs();

    public abstract void Dispose();
}
