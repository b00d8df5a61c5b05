using Spectre.Console;

namespace Compactor.Cli;

/// <summary>A progress bar on standard error for work that lasts: it appears after a second, and only in an interactive terminal.</summary>
internal static class LazyProgress
{
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(1);

    private static readonly TimeSpan s_refresh = TimeSpan.FromMilliseconds(100);

    /// <param name="description">What is being done.</param>
    /// <param name="work">The work; it reports what share is done, 0 to 1.</param>
    public static T Run<T>(string description, Func<Action<double>, T> work) =>
        !Console.IsErrorRedirected && Terminal.Error() is { Profile.Capabilities.Interactive: true } console ? Run(description, work, console, TimeProvider.System) : work(_ => { });

    /// <param name="description">What is being done.</param>
    /// <param name="work">The work; it reports what share is done, 0 to 1.</param>
    /// <param name="console">Where the bar appears.</param>
    /// <param name="time">What tells how long the work has lasted.</param>
    public static T Run<T>(string description, Func<Action<double>, T> work, IAnsiConsole console, TimeProvider time)
    {
        double done = 0;
        var patience = Task.Delay(Patience, time);
        var task = Task.Run(() => work(share => Volatile.Write(ref done, share)));
        // WaitAny, unlike Wait, leaves a failure to be thrown as it is below.
        if (Task.WaitAny(task, patience) != 0)
            console.Progress().AutoClear(true).Start(context =>
            {
                var bar = context.AddTask(description, maxValue: 1);
                while (Task.WaitAny([task], s_refresh) < 0)
                    bar.Value = Volatile.Read(ref done);
            });
        return task.GetAwaiter().GetResult();
    }
}
