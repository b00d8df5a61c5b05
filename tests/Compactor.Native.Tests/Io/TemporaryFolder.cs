namespace Compactor.Native.Tests.Io;

/// <summary>A folder of its own for each test, deleted with what is in it.</summary>
/// <param name="inMemory">Whether to use the memory file system where there is one: quick for many small files, but it may be short.</param>
public sealed class TemporaryFolder(bool inMemory = false) : IDisposable
{
    private const string MemoryFileSystem = "/dev/shm";

    public string Root { get; } = inMemory && Directory.Exists(MemoryFileSystem)
        ? Directory.CreateDirectory(Path.Combine(MemoryFileSystem, "compactor-io-" + Path.GetRandomFileName())).FullName
        : Directory.CreateTempSubdirectory("compactor-io-").FullName;

    public string this[string name] => Path.Combine(Root, name);

    public string Write(string name, byte[] bytes)
    {
        File.WriteAllBytes(this[name], bytes);
        return this[name];
    }

    public void Dispose() => Directory.Delete(Root, recursive: true);
}
