using Spectre.Console;

namespace Compactor.Cli;

/// <summary>Standard output and error as Spectre consoles.</summary>
internal static class Terminal
{
    // Tables in a file or a pipe have no window to fit.
    private const int WidthWhenRedirected = 180;

    public static IAnsiConsole Output()
    {
        var console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(Console.Out) });
        if (Console.IsOutputRedirected)
            console.Profile.Width = WidthWhenRedirected;
        return console;
    }

    /// <summary>Tells something besides what was asked for.</summary>
    public static void Note(string note) => Console.Error.WriteLine($"compactor: note: {note}");

    public static IAnsiConsole Error() => AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(Console.Error) });
}
