using System.Text.Json.Nodes;

namespace Compactor.Bench.Peers;

/// <summary>Somebody else's implementation of a subject.</summary>
internal abstract class Peer : IDisposable
{
    public abstract string Name { get; }

    /// <summary>Chooses the fastest way and number of threads; says which, of what version, and all that was timed.</summary>
    public abstract JsonObject Tune();

    /// <summary>Runs once.</summary>
    public abstract double Seconds();

    /// <summary>The result.</summary>
    public abstract float[] Outputs();

    public abstract void Dispose();
}
