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
    private const int PrefixLength = 8;

    private readonly IDisposable _memory;
    private readonly Dictionary<string, SafetensorsTensor> _tensors = new(StringComparer.Ordinal);
    private bool _disposed;

    /// <summary>Reads a file that is in memory, and nothing outside <c>[start, start + length)</c>.</summary>
    /// <param name="path">What it is called in messages.</param>
    /// <param name="start">Its first byte.</param>
    /// <param name="length">Its bytes.</param>
    /// <param name="memory">Disposed with the file, and when it is refused.</param>
    internal unsafe SafetensorsFile(string path, byte* start, long length, IDisposable memory)
    {
        (Path, Length, _memory) = (path, length, memory);
        try
        {
            if (Length < PrefixLength)
                throw Invalid($"the file has {Length} bytes; a safetensors file begins with the 8-byte length of its header.");
            ulong headerLength = BinaryPrimitives.ReadUInt64LittleEndian(new ReadOnlySpan<byte>(start, PrefixLength));
            if (headerLength is 0 or > SafetensorsHeader.MaxLength)
                throw Invalid($"the header length is {headerLength}; use 1 to {SafetensorsHeader.MaxLength} bytes. This may not be a safetensors file.");
            if ((long)headerLength > Length - PrefixLength)
                throw Invalid($"the header length is {headerLength}, but only {Length - PrefixLength} bytes follow it; the file is truncated or no safetensors file.");
            var header = new SafetensorsHeader(path, new ReadOnlySpan<byte>(start + PrefixLength, (int)headerLength));
            long dataStart = PrefixLength + (long)headerLength;
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
        using (stream)
        {
            if (!stream.CanSeek)
                throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' is a pipe or device and cannot be mapped; save what it gives as a file and name that.");
            try
            {
                return Map(path, stream);
            }
            catch (IOException e)
            {
                throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' cannot be read: {e.Message}", e);
            }
        }
    }

    /// <summary>Unmaps the file; addresses of its tensors become invalid.</summary>
    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        _memory.Dispose();
    }

    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(_disposed, this);

    private CompactorException Invalid(string problem) => new(CompactorStatus.InvalidFile, $"{Path}: {problem}");

    private static unsafe SafetensorsFile Map(string path, FileStream stream)
    {
        long length = stream.Length;
        // Nothing can be mapped of an empty file.
        if (length == 0)
            return new SafetensorsFile(path, null, 0, Stream.Null);
        var mapping = new Mapping(stream, length);
        return new SafetensorsFile(path, mapping.Start, length, mapping);
    }

    private sealed unsafe class Mapping : IDisposable
    {
        private readonly MemoryMappedFile _file;
        private readonly MemoryMappedViewAccessor _view;

        public Mapping(FileStream stream, long length)
        {
            _file = MemoryMappedFile.CreateFromFile(stream, null, 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: true);
            _view = _file.CreateViewAccessor(0, length, MemoryMappedFileAccess.Read);
            byte* start = null;
            _view.SafeMemoryMappedViewHandle.AcquirePointer(ref start);
            Start = start;
        }

        public byte* Start { get; }

        public void Dispose()
        {
            _view.SafeMemoryMappedViewHandle.ReleasePointer();
            _view.Dispose();
            _file.Dispose();
        }
    }
}
