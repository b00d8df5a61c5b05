namespace Compactor.Cli.Tests;

/// <summary>A folder that a test class owns.</summary>
public abstract class TemporaryFolder : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("compactor-cli-").FullName;

    protected string At(string name) => Path.Combine(_folder, name);

    public void Dispose()
    {
        Directory.Delete(_folder, recursive: true);
        GC.SuppressFinalize(this);
    }
}
