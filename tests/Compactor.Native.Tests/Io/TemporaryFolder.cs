namespace Compactor.Native.Tests.Io;

/// <summary>A folder of its own for each test, deleted with what is in it.</summary>
public sealed class TemporaryFolder : IDisposable
{
    public string Root { get; } = Directory.CreateTempSubdirectory("compactor-io-").FullName;

    public string this[string name] => Path.Combine(Root, name);

    public string Write(string name, byte[] bytes)
    {
        File.WriteAllBytes(this[name], bytes);
        return this[name];
    }

    public void Dispose() => Directory.Delete(Root, recursive: true);
}
