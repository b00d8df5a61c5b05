using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Abi;

/// <summary>
/// What scoring that was queued on a backend finds wrong with its data, kept until the host asks. A backend remembers the first fault since it was last asked, in terms of one
/// plan: it is asked, without waiting, whenever the plan changes. Used by whoever has the backend's turn.
/// </summary>
internal sealed class Findings(KvBackend operations) : IDisposable
{
    private readonly Queue<ScoringStatus> _queued = [];
    private CompactorException? _first;
    private LayerPlan? _scored;

    /// <summary>Comes before scoring operations.</summary>
    /// <param name="plan">Plan of the stages that follow; null where whoever queues them takes their status.</param>
    public void Begin(LayerPlan? plan)
    {
        if (_scored is { } before && !ReferenceEquals(before, plan))
            Add(operations.TakeStatus(before));
        _scored = plan;
    }

    /// <summary>Keeps a status whose scoring is queued.</summary>
    public void Add(ScoringStatus status)
    {
        _queued.Enqueue(status);
        while (_queued.TryPeek(out var oldest) && oldest.IsKnown)
            Note(_queued.Dequeue());
    }

    /// <summary>Waits for all that is queued, and tells the first fault since the last call.</summary>
    /// <exception cref="CompactorException">Keys, queries or scores are not finite, or no factorisation exists.</exception>
    public void ThrowIfAny()
    {
        Begin(null);
        while (_queued.TryDequeue(out var status))
            Note(status);
        if (_first is not { } first)
            return;
        _first = null;
        throw first;
    }

    public void Dispose()
    {
        while (_queued.TryDequeue(out var status))
            status.Dispose();
    }

    private void Note(ScoringStatus status)
    {
        using (status)
            try
            {
                status.ThrowIfFailed();
            }
            catch (CompactorException exception)
            {
                _first ??= exception;
            }
    }
}
