namespace Compactor.Gpu.Tests.Simt;

/// <summary>
/// Work captured from a stream, and from those that wait for what is captured, instead of being done: a graph. While it is captured the driver refuses whatever CUDA does not allow
/// then, and what a layer's compression must not do anyway.
/// </summary>
internal sealed class SimtCapture(SimtStream origin)
{
    private readonly List<Action> _work = [];
    private readonly Dictionary<SimtStream, int> _branches = [];

    /// <summary>Pieces of work.</summary>
    public int Count => _work.Count;

    public void Add(SimtStream stream, Action work)
    {
        _work.Add(work);
        if (stream != origin)
            _branches[stream] = _work.Count;
    }

    /// <summary>A stream waits for what another one had queued when the capture held so many pieces.</summary>
    public void Join(SimtStream waiting, SimtStream other, int position)
    {
        if (waiting == origin && _branches.TryGetValue(other, out int last) && last <= position + 1) // the event itself is one piece
            _branches[other] = 0;
        else
            _branches.TryAdd(waiting, 0);
    }

    /// <summary>Ends the capture.</summary>
    public void End()
    {
        foreach (var (stream, last) in _branches)
        {
            stream.Capture = null;
            if (last > 0)
                throw new InvalidOperationException("A stream that the captured one has forked to is not joined.");
        }
    }

    /// <summary>Queues the work on a stream.</summary>
    public void Launch(SimtStream stream)
    {
        foreach (var work in _work)
            stream.Enqueue(work);
    }
}
