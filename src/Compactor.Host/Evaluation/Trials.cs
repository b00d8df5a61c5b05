using Compactor.Native.Cpu;

namespace Compactor.Host.Evaluation;

/// <summary>Contexts of tasks, run one a thread. Results do not depend on the number of threads.</summary>
/// <param name="Model">The model.</param>
/// <param name="Text">Its tokenizer.</param>
/// <param name="Length">Tokens of a context and all its questions and answers.</param>
/// <param name="Turns">Whether questions follow each other in one conversation.</param>
/// <param name="Threads">Threads; 0 for all cores.</param>
public sealed record Trials(LlamaModel Model, TextTokenizer Text, int Length, bool Turns = false, int Threads = 0)
{
    /// <summary>Runs contexts <c>0 .. perSeed - 1</c> of every task and seed.</summary>
    /// <param name="tasks">Tasks.</param>
    /// <param name="seeds">Seeds; the contexts of a task and seed are the same whatever else is run.</param>
    /// <param name="perSeed">Contexts of each task and seed.</param>
    /// <param name="measure">What to do with each context.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    /// <param name="cancellation">Stops between contexts.</param>
    /// <returns>For each task, what was measured of its contexts, seed by seed.</returns>
    /// <exception cref="Compactor.Native.CompactorException">A context does not fit the length or the model.</exception>
    public T[][] Run<T>(IReadOnlyList<RetrievalTask> tasks, IReadOnlyList<ulong> seeds, int perSeed, Func<ContextTrial, T> measure, Action<double> progress,
        CancellationToken cancellation)
    {
        int perTask = seeds.Count * perSeed, all = tasks.Count * perTask, done = 0;
        T[][] results = [.. tasks.Select(_ => new T[perTask])];
        // Whole contexts are independent, so each thread has an engine of its own, which shares the weights.
        var engines = new ThreadLocal<Worker>(() => new Worker(Model, 2 * Length), trackAllValues: true);
        try
        {
            var options = new ParallelOptions { MaxDegreeOfParallelism = Threads > 0 ? Threads : Environment.ProcessorCount, CancellationToken = cancellation };
            Parallel.For(0, all, options, index =>
            {
                // Contexts of all tasks in turn: threads stay busy to the end, and progress is even.
                int task = index % tasks.Count, number = index / tasks.Count;
                var sample = tasks[task].Create(Length - Text.Begin.Count, SeedOf(tasks[task], seeds[number / perSeed], number % perSeed), text => Text.Encode(text).Length);
                using var trial = new ContextTrial(engines.Value!.Engine, Text, sample, Turns);
                results[task][number] = measure(trial);
                progress((double)Interlocked.Increment(ref done) / all);
            });
            return results;
        }
        catch (AggregateException exception) when (exception.InnerExceptions.Count > 0)
        {
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Throw(exception.InnerExceptions[0]);
            throw;
        }
        finally
        {
            foreach (var worker in engines.Values)
                worker.Dispose();
            engines.Dispose();
        }
    }

    private static ulong SeedOf(RetrievalTask task, ulong seed, int number)
    {
        int index = RetrievalTask.All.TakeWhile(other => other.Name != task.Name).Count();
        return new Draw(new Draw(seed).Bits() ^ (ulong)index << 32 ^ (ulong)number).Bits();
    }

    private sealed class Worker : IDisposable
    {
        private readonly CpuBackend _backend = new(threads: 1);

        public Worker(LlamaModel model, int tokens) => Engine = new Engine(model, _backend, tokens);

        public Engine Engine { get; }

        public void Dispose()
        {
            Engine.Dispose();
            _backend.Dispose();
        }
    }
}
