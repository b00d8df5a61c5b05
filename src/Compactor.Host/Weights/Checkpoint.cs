using Compactor.Native;
using Compactor.Native.Io;

namespace Compactor.Host;

/// <summary>
/// The weights of a checkpoint folder, mapped: <c>model.safetensors</c>, or the files that <c>model.safetensors.index.json</c> names in its <c>weight_map</c>.
/// </summary>
internal sealed class Checkpoint : IDisposable
{
    private const string SingleFile = "model.safetensors", Index = SingleFile + ".index.json";

    private readonly string _source;
    private readonly Dictionary<string, SafetensorsFile> _files = new(StringComparer.Ordinal);
    private readonly Dictionary<string, SafetensorsTensor> _tensors = new(StringComparer.Ordinal);

    /// <summary>Opens every file of a checkpoint.</summary>
    /// <param name="folder">The folder.</param>
    /// <exception cref="CompactorException">A file is missing or malformed, or lacks a tensor that the index places in it.</exception>
    public Checkpoint(string folder)
    {
        string index = Path.Combine(folder, Index);
        _source = Path.Combine(folder, SingleFile);
        try
        {
            if (File.Exists(_source) || !File.Exists(index))
                foreach (var (name, tensor) in Open(_source).Tensors)
                    _tensors.Add(name, tensor);
            else
                ReadIndex(folder, _source = index);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The files of the weights, in the order of their names.</summary>
    public string[] Files => [.. _files.Keys.Order(StringComparer.Ordinal)];

    /// <summary>Whether there is a tensor of a name.</summary>
    public bool Contains(string name) => _tensors.ContainsKey(name);

    /// <summary>A tensor of float elements.</summary>
    /// <param name="name">Name.</param>
    /// <param name="shape">Dimensions it must have.</param>
    /// <exception cref="CompactorException">It is missing, or has another shape or a type that is not read.</exception>
    public SafetensorsTensor Get(string name, params ReadOnlySpan<long> shape)
    {
        if (!_tensors.TryGetValue(name, out var tensor))
            throw new CompactorException(CompactorStatus.InvalidFile, $"{_source}: tensor '{name}' is missing; the checkpoint is incomplete, or config.json describes another model.");
        if (!tensor.Shape.SequenceEqual(shape.ToArray()))
            throw new CompactorException(CompactorStatus.InvalidFile,
                $"{_source}: tensor '{name}' is [{string.Join(", ", tensor.Shape)}]; config.json makes it [{string.Join(", ", shape.ToArray())}].");
        if (tensor.Type.ToElementType() is null)
            throw new CompactorException(CompactorStatus.Unsupported, $"{_source}: tensor '{name}' is of type {tensor.Type}; F32, F16 and BF16 are supported.");
        return tensor;
    }

    public void Dispose()
    {
        foreach (var file in _files.Values)
            file.Dispose();
    }

    private void ReadIndex(string folder, string index)
    {
        using var document = JsonFile.Open(index);
        var json = new JsonFile(index, document.RootElement);
        var map = json.Object("weight_map");
        foreach (var entry in map.Element.EnumerateObject())
        {
            string fileName = map.String(entry.Name);
            if (fileName.Length == 0 || Path.GetFileName(fileName) != fileName)
                throw json.Invalid($"weight_map places '{entry.Name}' in '{fileName}'; files must be beside the index");
            if (!Open(Path.Combine(folder, fileName)).Tensors.TryGetValue(entry.Name, out var tensor))
                throw json.Invalid($"weight_map places '{entry.Name}' in '{fileName}', which does not hold it");
            _tensors[entry.Name] = tensor;
        }
    }

    private SafetensorsFile Open(string path)
    {
        if (!_files.TryGetValue(path, out var file))
            _files.Add(path, file = SafetensorsFile.Open(path));
        return file;
    }
}
