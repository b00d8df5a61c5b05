using Compactor.Native;

namespace Compactor.Cli.Reporting;

/// <summary>
/// The folder of a report. It must be new, empty, or hold an earlier report and nothing else, which is then replaced. The files are written to a folder beside
/// it that takes its place when it is whole, so a failure leaves what was there. A link to a folder stays one.
/// </summary>
internal sealed class ReportFolder
{
    public const string Page = "index.html", Figures = "report.json";

    /// <summary>What the page of every report says of itself, by which an earlier report is known.</summary>
    public const string Mark = """<meta name="generator" content="compactor report">""";

    private readonly string _path, _parent;

    /// <summary>Checks that a report can be written there; changes nothing.</summary>
    /// <exception cref="CompactorException">It cannot; the message says why.</exception>
    public ReportFolder(string path)
    {
        if (path.Length == 0)
            throw Refused(path, "empty; name a folder");
        Name = path;
        _path = Guarded(() => RealPath.Of(path));
        _parent = Path.GetDirectoryName(_path) ?? throw Refused(path, "the root folder; name one of its own for the report");
        if (File.Exists(_path))
            throw Refused(path, "a file; name a folder");
        if (!Directory.Exists(_parent))
            throw Refused(path, $"in '{_parent}', which does not exist; create that first");
        Check();
        // Whether files can be made there shows only when one is.
        Guarded(() => Directory.Delete(NewBeside()));
    }

    /// <summary>The folder as the user named it.</summary>
    public string Name { get; }

    /// <summary>Whether a file is or would be in the folder.</summary>
    public bool Contains(string file) => RealPath.Of(file).StartsWith(_path + Path.DirectorySeparatorChar, StringComparison.Ordinal);

    /// <summary>Writes the report, in place of an earlier one.</summary>
    /// <exception cref="CompactorException">It cannot be written; the folder is as it was.</exception>
    public void Write(IEnumerable<(string Name, byte[] Content)> files) => Guarded(() =>
    {
        Check();
        string whole = NewBeside();
        try
        {
            foreach (var (name, content) in files)
                File.WriteAllBytes(Path.Combine(whole, name), content);
            if (!Directory.Exists(_path))
            {
                Directory.Move(whole, _path);
                return;
            }
            string earlier = NewName();
            Directory.Move(_path, earlier);
            try
            {
                Directory.Move(whole, _path);
            }
            catch
            {
                Directory.Move(earlier, _path);
                throw;
            }
            Delete(earlier);
        }
        finally
        {
            if (Directory.Exists(whole))
                Delete(whole);
        }
    });

    private string NewName() => Path.Combine(_parent, $".{Path.GetFileName(_path)}.{Guid.NewGuid():N}");

    private string NewBeside() => Directory.CreateDirectory(NewName()).FullName;

    private static void Delete(string folder)
    {
        foreach (string file in Directory.GetFiles(folder))
            File.Delete(file);
        Directory.Delete(folder);
    }

    private void Check()
    {
        if (!Directory.Exists(_path))
            return;
        string[] names = [.. Guarded(() => Directory.GetFileSystemEntries(_path)).Select(entry => Path.GetFileName(entry)!).Order(StringComparer.Ordinal)];
        string? foreign = names.FirstOrDefault(name => name is not (Page or Figures) && Path.GetExtension(name) != ".png" || Directory.Exists(Path.Combine(_path, name)));
        if (foreign is null && names.Length > 0 && !(names.Contains(Page) && Guarded(() => File.ReadAllText(Path.Combine(_path, Page))).Contains(Mark, StringComparison.Ordinal)))
            foreign = names[0];
        if (foreign is not null)
            throw Refused(Name, $"not empty and holds '{foreign}', which is not of an earlier report; name a new folder");
    }

    private void Guarded(Action action) => Guarded(() =>
    {
        action();
        return 0;
    });

    private T Guarded<T>(Func<T> action)
    {
        try
        {
            return action();
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new CompactorException(CompactorStatus.InvalidArgument, $"The report cannot be written to '{Name}': {exception.Message}", exception);
        }
    }

    private static CompactorException Refused(string path, string reason) => new(CompactorStatus.InvalidArgument, $"--report is '{path}', {reason}.");
}
