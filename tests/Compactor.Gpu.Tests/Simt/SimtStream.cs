using Compactor.Native;
using Compactor.Native.Gpu;

namespace Compactor.Gpu.Tests.Simt;

/// <summary>
/// A queue whose work is put off until somebody waits for it or its seed says so: what reads a result too early, or reuses memory a queued copy still needs, meets the old bytes.
/// Nothing runs by itself; the driver's lock orders the callers.
/// </summary>
internal sealed class SimtStream(SimtDriver driver) : GpuStream
{
    private readonly Queue<Action> _work = [];

    /// <summary>What takes the work instead of the queue; null where nothing is captured.</summary>
    public SimtCapture? Capture { get; set; }

    public void Enqueue(Action work)
    {
        lock (driver.Lock)
        {
            if (Capture is { } capture)
            {
                capture.Add(this, work);
                return;
            }
            _work.Enqueue(work);
            for (int steps = driver.Hurry(); steps > 0 && _work.Count > 0; steps--)
                Step();
        }
    }

    /// <summary>Does the oldest work, if there is any.</summary>
    public bool Step()
    {
        lock (driver.Lock)
        {
            if (!_work.TryDequeue(out var work))
                return false;
            driver.Run(work);
            return true;
        }
    }

    public override void Synchronize()
    {
        driver.RefuseInCapture("cuStreamSynchronize");
        while (Step())
        {
        }
        driver.ThrowIfFailed();
    }

    public override void Dispose()
    {
        while (Step())
        {
        }
    }
}

/// <summary>A point in a stream.</summary>
internal sealed class SimtEvent(SimtDriver driver, SimtStream stream) : BackendEvent
{
    private volatile bool _passed;

    /// <summary>The capture it was recorded in, if any, and how much that held.</summary>
    public SimtCapture? Capture { get; } = stream.Capture;

    public int Position { get; } = stream.Capture?.Count ?? 0;

    public SimtStream Stream => stream;

    /// <summary>What the stream does when it comes to the point.</summary>
    public void Pass() => _passed = true;

    public override bool HasPassed
    {
        get
        {
            driver.RefuseInCapture("cuEventQuery");
            if (!_passed)
                stream.Step(); // time goes by between two questions
            driver.ThrowIfFailed();
            return _passed;
        }
    }

    /// <summary>Lets the event's stream run up to the point.</summary>
    public void Reach()
    {
        while (!_passed && stream.Step())
        {
        }
    }

    public override void Wait()
    {
        driver.RefuseInCapture("cuEventSynchronize");
        Reach();
        driver.ThrowIfFailed();
    }

    public override void Dispose()
    {
    }
}
