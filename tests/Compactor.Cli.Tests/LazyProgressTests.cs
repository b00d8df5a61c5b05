using System.Diagnostics;
using Spectre.Console;
using Xunit;

namespace Compactor.Cli.Tests;

public class LazyProgressTests : TemporaryFolder
{
    private static readonly TimeSpan s_failing = TimeSpan.FromSeconds(60);

    [Fact]
    public void Work_of_less_than_a_second_shows_nothing()
    {
        var (time, screen) = (new ManualTime(), new Screen());
        int result = LazyProgress.Run("Working", progress =>
        {
            progress(0.5);
            time.Advance(LazyProgress.Patience - TimeSpan.FromMilliseconds(1));
            return 7;
        }, screen.Console, time);
        Assert.Equal(7, result);
        Assert.Empty(screen.Text);
    }

    [Fact]
    public void Work_of_over_a_second_shows_what_is_done_and_of_what()
    {
        var (time, screen) = (new ManualTime(), new Screen());
        int result = LazyProgress.Run("Working", progress =>
        {
            progress(0.25);
            time.Advance(LazyProgress.Patience);
            Assert.True(SpinWait.SpinUntil(() => screen.Text.Contains("Working") && screen.Text.Contains("25%"), s_failing), screen.Text);
            progress(0.75);
            Assert.True(SpinWait.SpinUntil(() => screen.Text.Contains("75%"), s_failing), screen.Text);
            return 7;
        }, screen.Console, time);
        Assert.Equal(7, result);
    }

    [Fact]
    public void A_failure_is_passed_on_before_and_after_the_bar_appears()
    {
        foreach (bool late in (bool[])[false, true])
        {
            var (time, screen) = (new ManualTime(), new Screen());
            Assert.Throws<InvalidDataException>(() => LazyProgress.Run<int>("Working", _ =>
            {
                if (late)
                {
                    time.Advance(LazyProgress.Patience);
                    Assert.True(SpinWait.SpinUntil(() => screen.Text.Length > 0, s_failing));
                }
                throw new InvalidDataException();
            }, screen.Console, time));
        }
    }

    /// <summary>In a terminal the bar may appear or not, by how quick the machine is; standard output is one JSON document either way.</summary>
    [Fact]
    public void Json_in_a_terminal_is_one_document_on_standard_output()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "no script command that makes a terminal");
        string tool = $"dotnet exec '{Path.Combine(AppContext.BaseDirectory, "compactor.dll")}' demo --json --report '{At("report")}' > '{At("out.json")}'";
        var start = new ProcessStartInfo("script", ["-qec", $"test -t 2 && {tool}", "/dev/null"]) { RedirectStandardOutput = true, RedirectStandardInput = true };
        using var terminal = Process.Start(start)!;
        terminal.StandardInput.Close();
        string shown = terminal.StandardOutput.ReadToEnd();
        terminal.WaitForExit();
        Assert.True(terminal.ExitCode == 0, shown);
        using var document = System.Text.Json.JsonDocument.Parse(File.ReadAllText(At("out.json")));
        Assert.True(document.RootElement.GetProperty("layers").GetArrayLength() > 0);
        Assert.DoesNotContain("layers", shown);
    }

    /// <summary>A terminal to which everything is written that a real one would show.</summary>
    private sealed class Screen
    {
        private readonly StringWriter _text = new();

        public Screen() => Console = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Ansi = AnsiSupport.Yes,
            ColorSystem = ColorSystemSupport.NoColors,
            Interactive = InteractionSupport.Yes,
            Out = new AnsiConsoleOutput(TextWriter.Synchronized(_text)),
        });

        public IAnsiConsole Console { get; }

        public string Text
        {
            get
            {
                lock (_text)
                    return _text.ToString();
            }
        }
    }

    /// <summary>Time that passes only when told to.</summary>
    private sealed class ManualTime : TimeProvider
    {
        private readonly Lock _lock = new();
        private readonly List<(TimeSpan Due, Action Fire)> _timers = [];
        private TimeSpan _now;

        public void Advance(TimeSpan by)
        {
            Action[] due;
            lock (_lock)
            {
                _now += by;
                due = [.. _timers.Where(timer => timer.Due <= _now).Select(timer => timer.Fire)];
                _timers.RemoveAll(timer => timer.Due <= _now);
            }
            foreach (var fire in due)
                fire();
        }

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
        {
            lock (_lock)
                _timers.Add((_now + dueTime, () => callback(state)));
            return new Timer();
        }

        private sealed class Timer : ITimer
        {
            public bool Change(TimeSpan dueTime, TimeSpan period) => true;

            public void Dispose() { }

            public ValueTask DisposeAsync() => ValueTask.CompletedTask;
        }
    }
}
