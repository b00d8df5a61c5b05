namespace Compactor.Host.Tests;

/// <summary>Files that tests read.</summary>
internal static class TestFiles
{
    public static string Needle { get; } = Path.Combine(AppContext.BaseDirectory, "Models", "needle");

    public static string Data(string name) => Path.Combine(AppContext.BaseDirectory, "data", "host", name);
}
