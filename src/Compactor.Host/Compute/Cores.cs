namespace Compactor.Host;

/// <summary>Runs independent items on a fixed number of threads. Items write disjoint outputs, so which thread takes one never changes a result.</summary>
internal readonly record struct Cores(int Threads)
{
    public void For(int items, Action<int> body)
    {
        if (Threads == 1 || items <= 1)
            for (int i = 0; i < items; i++)
                body(i);
        else
            Parallel.For(0, items, new ParallelOptions { MaxDegreeOfParallelism = Threads }, body);
    }
}
