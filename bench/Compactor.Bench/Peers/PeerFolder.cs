namespace Compactor.Bench.Peers;

/// <summary>A subject's inputs as files, for processes of other languages: shape.json, and a raw float32 file a tensor.</summary>
internal sealed class PeerFolder : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("compactor-peer-");

    /// <param name="subject">Whose inputs.</param>
    /// <param name="threads">As many as the library has.</param>
    public PeerFolder(Subject subject, int threads)
    {
        var shape = subject.Dimensions.DeepClone().AsObject();
        shape["threads"] = threads;
        File.WriteAllText(PathOf("shape.json"), shape.ToJsonString());
        foreach (var input in subject.Inputs)
            Write(input);
    }

    public string Path => _folder.FullName;

    public string PathOf(string name) => System.IO.Path.Combine(Path, name);

    private unsafe void Write(PeerInput input)
    {
        using var file = File.Create(PathOf(input.Name + ".bin"));
        const int piece = 1 << 28;
        for (long done = 0; done < input.Length; done += piece)
            file.Write(new ReadOnlySpan<byte>((float*)input.Address + done, (int)Math.Min(piece, input.Length - done) * sizeof(float)));
    }

    public void Dispose() => _folder.Delete(recursive: true);
}
