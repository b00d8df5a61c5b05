using System.Buffers.Binary;
using System.IO.MemoryMappedFiles;

namespace Compactor.Native.Io;

/// <summary>
/// A safetensors file, mapped read-only: an 8-byte little-endian header length, a JSON header, then the data of all tensors.
/// Everything is checked on opening: each tensor's address and length lie inside the file, and reading them cannot fail afterwards,
/// provided that nobody shortens the file while it is open. Replacing the file by renaming, as <see cref="SafetensorsWriter"/> does, is safe.
/// </summary>
public sealed class SafetensorsFile : IDisposable
{
    private readonly MemoryMappedFile _mapping;
    private readonly MemoryMappedViewAccessor _view;
    private readonly Dictionary<string, SafetensorsTensor> _tensors = new(StringComparer.Ordinal);
    private bool _disposed;

    private unsafe SafetensorsFile(string path, FileStream stream)
    {
        Path = path;
        if (!stream.CanSeek)
            throw Invalid("it is a pipe or device and cannot be mapped; save it as a regular file.");
        Length = stream.Length;
        Span<byte> prefix = stackalloc byte[8];
        if (Length < prefix.Length)
            throw Invalid($"the file has {Length} bytes; a safetensors file begins with the 8-byte length of its header.");
        stream.ReadExactly(prefix);
        ulong headerLength = BinaryPrimitives.ReadUInt64LittleEndian(prefix);
        if (headerLength is 0 or > SafetensorsHeader.MaxLength)
            throw Invalid($"the header length is {headerLength}; use 1 to {SafetensorsHeader.MaxLength} bytes. This may not be a safetensors file.");
        if ((long)headerLength > Length - prefix.Length)
            throw Invalid($"the header length is {headerLength}, but only {Length - prefix.Length} bytes follow it; the file is truncated or no safetensors file.");

        byte* start = null;
        _mapping = MemoryMappedFile.CreateFromFile(stream, null, 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: false);
        _view = _mapping.CreateViewAccessor(0, Length, MemoryMappedFileAccess.Read);
        _view.SafeMemoryMappedViewHandle.AcquirePointer(ref start);
        try
        {
            var header = new SafetensorsHeader(path, new ReadOnlySpan<byte>(start + prefix.Length, (int)headerLength));
            long dataStart = prefix.Length + (long)headerLength;
            header.CheckLayout(dataStart, Length - dataStart);
            foreach (var entry in header.Tensors)
                _tensors.Add(entry.Name, new SafetensorsTensor(this, (nint)(start + dataStart + entry.Begin), entry));
            Metadata = header.Metadata;
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The path it was opened by.</summary>
    public string Path { get; }

    /// <summary>Bytes of the file.</summary>
    public long Length { get; }

    /// <summary>All tensors by name, in the order of their data.</summary>
    public IReadOnlyDictionary<string, SafetensorsTensor> Tensors => _tensors;

    /// <summary>The header's <c>__metadata__</c>; empty when it has none.</summary>
    public IReadOnlyDictionary<string, string> Metadata { get; }

    /// <summary>Opens and checks a file.</summary>
    /// <param name="path">Path of the file.</param>
    /// <exception cref="CompactorException">
    /// <see cref="CompactorStatus.InvalidFile"/>: the file cannot be opened, or is not a well-formed safetensors file; the message says where.
    /// </exception>
    public static SafetensorsFile Open(string path)
    {
        string? refusal = FileKinds.Of(path) switch
        {
            FileKind.Folder => "is a folder; name a safetensors file in it.",
            FileKind.Special => "is a pipe, socket or device and cannot be mapped; save what it gives as a file and name that.",
            _ => null,
        };
        if (refusal is not null)
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' {refusal}");
        FileStream stream;
        try
        {
            stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read | FileShare.Delete, bufferSize: 0);
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' does not exist; check the path.", e);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' cannot be opened: {e.Message}", e);
        }
        try
        {
            return new SafetensorsFile(path, stream);
        }
        catch (IOException e)
        {
            stream.Dispose();
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' cannot be read: {e.Message}", e);
        }
        catch
        {
            stream.Dispose();
            throw;
        }
    }

    /// <summary>Unmaps the file; addresses of its tensors become invalid.</summary>
    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        _view.SafeMemoryMappedViewHandle.ReleasePointer();
        _view.Dispose();
        _mapping.Dispose();
    }

    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(_disposed, this);

    private CompactorException Invalid(string problem) => new(CompactorStatus.InvalidFile, $"{Path}: {problem}");
}
