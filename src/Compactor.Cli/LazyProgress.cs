using Spectre.Console;

namespace Compactor.Cli;

/// <summary>A progress bar on standard error for work that lasts: it appears after a second, and only in an interactive terminal.</summary>
internal static class LazyProgress
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(1), s_refresh = TimeSpan.FromMilliseconds(100);

    /// <param name="description">What is being done.</param>
    /// <param name="work">The work; it reports what share is done, 0 to 1.</param>
    public static T Run<T>(string description, Func<Action<double>, T> work)
    {
        if (Console.IsErrorRedirected || Terminal.Error() is not { Profile.Capabilities.Interactive: true } console)
            return work(_ => { });

        double done = 0;
        var task = Task.Run(() => work(share => Volatile.Write(ref done, share)));
        // WaitAny, unlike Wait, leaves a failure to be thrown as it is below.
        if (Task.WaitAny([task], s_patience) < 0)
            console.Progress().AutoClear(true).Start(context =>
            {
                var bar = context.AddTask(description, maxValue: 1);
                while (Task.WaitAny([task], s_refresh) < 0)
                    bar.Value = Volatile.Read(ref done);
            });
        return task.GetAwaiter().GetResult();
    }
}
