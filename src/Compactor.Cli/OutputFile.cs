using Compactor.Cli.Reporting;
using Compactor.Native;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>The file of <c>--out</c>, of which the command finds out before its work whether it could be written.</summary>
internal static class OutputFile
{
    /// <summary>Checks that a file can be written there and no report is in its way; changes nothing.</summary>
    /// <param name="path">The file as the user named it.</param>
    /// <param name="report">Where a report goes besides; null for nowhere.</param>
    /// <exception cref="CompactorException">It cannot; the message says why.</exception>
    public static void Check(string path, ReportFolder? report)
    {
        if (path.Length == 0)
            throw Refused(path, "empty; name a file");
        CheckOutside(path, report);
        if (Directory.Exists(path))
            throw Refused(path, "a folder; name a file in it");
        string full = Path.GetFullPath(path);
        if (Path.GetDirectoryName(full) is not { } parent || !Directory.Exists(parent))
            throw Refused(path, "in a folder that does not exist; create that first");
        try
        {
            // Through a link, the file is made beside what the link leads to.
            parent = Path.GetDirectoryName(Destination.Of(path))!;
            // Whether files can be made there shows only when one is.
            using var probe = new FileStream(Path.Combine(parent, $".{Guid.NewGuid():N}"), FileMode.CreateNew, FileAccess.Write, FileShare.None, 1, FileOptions.DeleteOnClose);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new CompactorException(CompactorStatus.InvalidArgument, $"--out is '{path}', which cannot be written: no file can be made in '{parent}'. Name another place.", exception);
        }
    }

    /// <summary>Checks that the file is not in the folder of a report, which would replace it.</summary>
    /// <exception cref="CompactorException">It is.</exception>
    public static void CheckOutside(string path, ReportFolder? report)
    {
        if (report?.Contains(path) == true)
            throw Refused(path, "within the folder of --report, which a report has for itself; name another place");
    }

    private static CompactorException Refused(string path, string reason) => new(CompactorStatus.InvalidArgument, $"--out is '{path}', {reason}.");
}
