namespace Compactor.Cli;

/// <summary>Whether two paths lead to one place shows only where no link is left in them.</summary>
internal static class RealPath
{
    /// <summary>The absolute path that another leads to, with every link on the way followed; what it ends in need not exist.</summary>
    /// <exception cref="IOException">Links lead in a circle.</exception>
    public static string Of(string path)
    {
        string full = Path.TrimEndingDirectorySeparator(Path.GetFullPath(path));
        if (Path.GetDirectoryName(full) is not { } parent)
            return full;
        var entry = new FileInfo(Path.Combine(Of(parent), Path.GetFileName(full)));
        return entry.LinkTarget is null ? entry.FullName : Of(entry.ResolveLinkTarget(returnFinalTarget: true)!.FullName);
    }
}
