using System.Globalization;

namespace Compactor.Cli;

/// <summary>Numbers as people read them.</summary>
internal static class Units
{
    public static string Bytes(long bytes) => $"{Scaled(bytes, bytes)} {Unit(bytes)}";

    /// <summary>Two sizes in the unit of the first.</summary>
    public static string Bytes(long before, long after) => $"{Scaled(before, before)} -> {Scaled(after, before)} {Unit(before)}";

    public static string Count(long count) => Text($"{count:#,0}");

    public static string Milliseconds(TimeSpan time) => Text($"{time.TotalMilliseconds:0.0}");

    public static string Percent(double? ratio) => ratio is { } r ? Text($"{100 * r:0.0}%") : "n/a";

    private static string Unit(long bytes) => bytes switch
    {
        < 1_000 => "B",
        < 1_000_000 => "kB",
        < 1_000_000_000 => "MB",
        _ => "GB",
    };

    private static string Scaled(long bytes, long reference) => reference switch
    {
        < 1_000 => $"{bytes}",
        < 1_000_000 => Text($"{bytes / 1e3:0.0}"),
        < 1_000_000_000 => Text($"{bytes / 1e6:0.00}"),
        _ => Text($"{bytes / 1e9:0.00}"),
    };

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
