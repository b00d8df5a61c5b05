using System.Diagnostics.Metrics;

namespace Compactor.Bench;

/// <summary>
/// Blocks that a paged cache takes and gives back, as its meter reports them: how many are in use, and how many were at the most. Made before the only cache that its thread uses, and deaf to
/// what other threads do.
/// </summary>
internal sealed class PoolMeter : IDisposable
{
    private const string Taken = "compactor.cache.blocks.taken", Given = "compactor.cache.blocks.given";

    private readonly MeterListener _listener = new();

    public PoolMeter()
    {
        _listener.InstrumentPublished = (instrument, listener) =>
        {
            if (instrument.Meter.Name == "Compactor.Native" && instrument.Name is Taken or Given)
                listener.EnableMeasurementEvents(instrument);
        };
        int thread = Environment.CurrentManagedThreadId;
        _listener.SetMeasurementEventCallback<long>((instrument, blocks, _, _) =>
        {
            // measurements come on the thread that took or gave
            if (Environment.CurrentManagedThreadId != thread)
                return;
            Used += instrument.Name == Taken ? blocks : -blocks;
            Peak = Math.Max(Peak, Used);
        });
        _listener.Start();
    }

    /// <summary>Blocks in use.</summary>
    public long Used { get; private set; }

    /// <summary>Blocks in use at the most since <see cref="Restart"/>.</summary>
    public long Peak { get; private set; }

    /// <summary>The peak begins anew.</summary>
    public void Restart() => Peak = Used;

    public void Dispose() => _listener.Dispose();
}
