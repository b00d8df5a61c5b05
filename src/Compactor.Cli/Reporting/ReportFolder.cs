using System.Text.RegularExpressions;
using Compactor.Native;

namespace Compactor.Cli.Reporting;

/// <summary>
/// The folder of a report. It must be new, empty, or hold an earlier report and nothing else, which is then replaced. The files are written to a folder beside
/// it that takes its place when it is whole, so a failure leaves what was there. A link to a folder stays one.
/// </summary>
internal sealed partial class ReportFolder
{
    public const string Page = "index.html", Figures = "report.json";

    /// <summary>What the page of every report says of itself, by which an earlier report is known.</summary>
    public const string Mark = """<meta name="generator" content="compactor report">""";

    private readonly string _path, _parent;

    [GeneratedRegex(@"^(error|lengths|retained|curves|shares|layer-\d+-(scores|kept|error))\.png$")]
    private static partial Regex Pictures();

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
    public void Write(IEnumerable<(string Name, byte[] Content)> files)
    {
        using var staged = Stage(files, CancellationToken.None);
        staged.Publish();
    }

    /// <summary>Writes the files beside the folder, which stays as it is until they are published.</summary>
    /// <exception cref="CompactorException">They cannot be written; nothing is left of them.</exception>
    /// <exception cref="OperationCanceledException">Cancelled; nothing is left of them.</exception>
    public Staged Stage(IEnumerable<(string Name, byte[] Content)> files, CancellationToken cancellation)
    {
        Check();
        var staged = new Staged(this, Guarded(NewBeside));
        try
        {
            foreach (var (name, content) in files)
            {
                cancellation.ThrowIfCancellationRequested();
                Guarded(() => File.WriteAllBytes(Path.Combine(staged.Folder, name), content));
            }
            return staged;
        }
        catch
        {
            staged.Dispose();
            throw;
        }
    }

    /// <summary>A whole report beside its place; deleted unless published.</summary>
    public sealed class Staged(ReportFolder place, string folder) : IDisposable
    {
        internal string Folder => folder;

        /// <summary>Puts the report in its place.</summary>
        /// <exception cref="CompactorException">It cannot be put there; what was there stays.</exception>
        public void Publish() => place.Guarded(() =>
        {
            if (!Directory.Exists(place._path))
            {
                Directory.Move(folder, place._path);
                return;
            }
            string earlier = place.NewName();
            Directory.Move(place._path, earlier);
            try
            {
                Directory.Move(folder, place._path);
            }
            catch
            {
                Directory.Move(earlier, place._path);
                throw;
            }
            Delete(earlier);
        });

        public void Dispose()
        {
            if (Directory.Exists(folder))
                Delete(folder);
        }
    }

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
        string? foreign = names.FirstOrDefault(name => name is not (Page or Figures) && !Pictures().IsMatch(name) || Directory.Exists(Path.Combine(_path, name)));
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
