using System.Buffers;
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace Compactor.Native.Io;

/// <summary>Receives a tensor's bytes, piece by piece and in order, while the file is written.</summary>
/// <param name="piece">The next bytes; free to reuse once the call returns.</param>
public delegate void SafetensorsPieceWriter(ReadOnlySpan<byte> piece);

/// <summary>
/// Writes a safetensors file. Tensors are declared first and their bytes asked for while saving, so no copy of them is held.
/// The same tensors and metadata give the same bytes in whatever order they were added: tensors are ordered by descending element size,
/// then by name, and the header is padded, so that each tensor is aligned to its elements.
/// </summary>
public sealed class SafetensorsWriter
{
    private const int PieceLength = 1 << 26;

    private readonly Dictionary<string, Tensor> _tensors = new(StringComparer.Ordinal);
    private readonly SortedDictionary<string, string> _metadata = new(StringComparer.Ordinal);

    /// <summary>Adds an entry to the header's <c>__metadata__</c>.</summary>
    /// <exception cref="CompactorException">The key is already there, or a text is not valid UTF-16.</exception>
    public void AddMetadata(string key, string value)
    {
        CheckText(key);
        CheckText(value);
        if (!_metadata.TryAdd(key, value))
            throw CompactorException.Argument($"Metadata {SafetensorsHeader.Quote(key)} was added before; keys must be unique.");
    }

    /// <summary>Adds a tensor whose bytes come from a callback, which may produce them in any number of pieces.</summary>
    /// <param name="name">Unique name; any text but <c>__metadata__</c>.</param>
    /// <param name="type">Type of one element.</param>
    /// <param name="shape">Dimensions, the last one dense; empty for a scalar. A dimension may be 0.</param>
    /// <param name="source">Called by each <see cref="Save"/>; must write exactly as many bytes as type and shape take.</param>
    /// <exception cref="CompactorException">The name is taken or reserved, or the shape is negative or too large.</exception>
    public void Add(string name, SafetensorsType type, ReadOnlySpan<long> shape, Action<SafetensorsPieceWriter> source)
    {
        Declare(name, type, shape, null, source);
    }

    /// <summary>Adds a tensor from managed memory, which must not change until <see cref="Save"/> returns.</summary>
    /// <inheritdoc cref="Add(string, SafetensorsType, ReadOnlySpan{long}, Action{SafetensorsPieceWriter})"/>
    /// <param name="name">Unique name; any text but <c>__metadata__</c>.</param>
    /// <param name="type">Type of one element.</param>
    /// <param name="shape">Dimensions.</param>
    /// <param name="bytes">Little-endian elements, as many as the shape takes.</param>
    public void Add(string name, SafetensorsType type, ReadOnlySpan<long> shape, ReadOnlyMemory<byte> bytes)
    {
        Declare(name, type, shape, bytes.Length, write => write(bytes.Span));
    }

    /// <summary>Adds a tensor from host memory of any size, which must stay in place until <see cref="Save"/> returns.</summary>
    /// <inheritdoc cref="Add(string, SafetensorsType, ReadOnlySpan{long}, Action{SafetensorsPieceWriter})"/>
    /// <param name="name">Unique name; any text but <c>__metadata__</c>.</param>
    /// <param name="type">Type of one element.</param>
    /// <param name="shape">Dimensions.</param>
    /// <param name="address">Address of the first element.</param>
    /// <param name="byteLength">Bytes there, as many as the shape takes.</param>
    public unsafe void Add(string name, SafetensorsType type, ReadOnlySpan<long> shape, nint address, long byteLength)
    {
        if (address == 0 && byteLength > 0)
            throw CompactorException.Argument($"Tensor {SafetensorsHeader.Quote(name)} has a null address.");
        Declare(name, type, shape, byteLength, write =>
        {
            for (long done = 0; done < byteLength; done += PieceLength)
                write(new ReadOnlySpan<byte>((byte*)address + done, (int)Math.Min(PieceLength, byteLength - done)));
        });
    }

    /// <summary>Adds an F32 tensor.</summary>
    /// <exception cref="CompactorException">As for the other overloads.</exception>
    public void Add(string name, ReadOnlySpan<long> shape, float[] values)
    {
        Declare(name, SafetensorsType.F32, shape, 4L * values.Length, write => WriteValues<float>(values, write));
    }

    /// <summary>Adds an I32 tensor.</summary>
    /// <exception cref="CompactorException">As for the other overloads.</exception>
    public void Add(string name, ReadOnlySpan<long> shape, int[] values)
    {
        Declare(name, SafetensorsType.I32, shape, 4L * values.Length, write => WriteValues<int>(values, write));
    }

    /// <summary>
    /// Writes the file: to a new file beside <paramref name="path"/>, flushed to the device, then renamed over it. Until the rename the
    /// destination is untouched; on any failure the new file is deleted. May be called again.
    /// </summary>
    /// <param name="path">Destination, replaced when it exists. A symbolic link stays one: what it leads to is the destination. Pipes, devices and folders are refused.</param>
    /// <param name="cancellation">Looked at before every piece.</param>
    /// <exception cref="OperationCanceledException">Cancelled; the destination is as it was.</exception>
    /// <exception cref="CompactorException">
    /// <see cref="CompactorStatus.InvalidFile"/> when the file cannot be written; <see cref="CompactorStatus.InvalidArgument"/> when a source
    /// gives more or fewer bytes than its shape takes. What a source throws is passed on.
    /// </exception>
    public void Save(string path, CancellationToken cancellation = default)
    {
        string destination = Attempt(path, () => Destination.Of(path));
        var order = _tensors.Values.OrderByDescending(tensor => tensor.Type.Size()).ThenBy(tensor => tensor.Name, StringComparer.Ordinal).ToList();
        byte[] header = Header(order);
        string temporary = $"{destination}.{System.IO.Path.GetRandomFileName()}.tmp";
        var stream = Attempt(path, () => new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, bufferSize: 0));
        bool saved = false;
        try
        {
            using (stream)
            {
                Write(path, stream, header);
                foreach (var tensor in order)
                    Write(path, stream, tensor, cancellation);
                Attempt(path, () =>
                {
                    stream.Flush(flushToDisk: true);
                    return true;
                });
            }
            cancellation.ThrowIfCancellationRequested();
            Attempt(path, () =>
            {
                File.Move(temporary, destination, overwrite: true);
                return true;
            });
            saved = true;
        }
        finally
        {
            if (!saved)
                File.Delete(temporary);
        }
    }

    private void Declare(string name, SafetensorsType type, ReadOnlySpan<long> shape, long? givenBytes, Action<SafetensorsPieceWriter> source)
    {
        CheckText(name);
        string quoted = SafetensorsHeader.Quote(name), shown = SafetensorsHeader.Show(shape.ToArray());
        if (name == SafetensorsHeader.MetadataName)
            throw CompactorException.Argument($"{quoted} names the file's metadata, not a tensor; use {nameof(AddMetadata)}.");
        if (shape.Length > SafetensorsHeader.MaxRank)
            throw CompactorException.Argument($"Tensor {quoted} has {shape.Length} dimensions; use at most {SafetensorsHeader.MaxRank}.");
        foreach (long dimension in shape)
            if (dimension < 0)
                throw CompactorException.Argument($"Tensor {quoted} has shape {shown}; dimensions must not be negative.");
        if (SafetensorsHeader.ByteLength(type, shape) is not { } bytes)
            throw CompactorException.Argument($"Tensor {quoted} has shape {shown}, whose size in bytes exceeds 63 bits.");
        if (givenBytes is { } given && given != bytes)
            throw CompactorException.Argument($"Tensor {quoted} takes {bytes} bytes as {type} {shown}; {given} were given.");
        if (!_tensors.TryAdd(name, new Tensor(name, type, shape.ToArray(), bytes, source)))
            throw CompactorException.Argument($"Tensor {quoted} was added before; names must be unique.");
    }

    private byte[] Header(List<Tensor> order)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (var json = new Utf8JsonWriter(buffer, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            if (_metadata.Count > 0)
            {
                json.WriteStartObject(SafetensorsHeader.MetadataName);
                foreach (var (key, value) in _metadata)
                    json.WriteString(key, value);
                json.WriteEndObject();
            }
            long offset = 0;
            foreach (var tensor in order)
            {
                if (tensor.ByteLength > long.MaxValue - offset)
                    throw CompactorException.Argument($"The tensors up to {SafetensorsHeader.Quote(tensor.Name)} exceed 63 bits of bytes together.");
                json.WriteStartObject(tensor.Name);
                json.WriteString("dtype", tensor.Type.ToString());
                json.WriteStartArray("shape");
                foreach (long dimension in tensor.Shape)
                    json.WriteNumberValue(dimension);
                json.WriteEndArray();
                json.WriteStartArray("data_offsets");
                json.WriteNumberValue(offset);
                json.WriteNumberValue(offset += tensor.ByteLength);
                json.WriteEndArray();
                json.WriteEndObject();
            }
            json.WriteEndObject();
        }
        int padded = (buffer.WrittenCount + 7) & ~7;
        if (padded > SafetensorsHeader.MaxLength)
            throw CompactorException.Unsupported($"The header takes {padded} bytes; at most {SafetensorsHeader.MaxLength} are allowed. Write fewer tensors or less metadata.");
        var header = new byte[8 + padded];
        BinaryPrimitives.WriteUInt64LittleEndian(header, (ulong)padded);
        header.AsSpan(8).Fill((byte)' ');
        buffer.WrittenSpan.CopyTo(header.AsSpan(8));
        return header;
    }

    private static void Write(string path, FileStream stream, Tensor tensor, CancellationToken cancellation)
    {
        long written = 0;
        tensor.Source(piece =>
        {
            cancellation.ThrowIfCancellationRequested();
            if (piece.Length > tensor.ByteLength - written)
                throw Mismatch("more");
            Write(path, stream, piece);
            written += piece.Length;
        });
        if (written < tensor.ByteLength)
            throw Mismatch($"only {written}");

        CompactorException Mismatch(string amount) => CompactorException.Argument(
            $"Tensor {SafetensorsHeader.Quote(tensor.Name)} takes {tensor.ByteLength} bytes as {tensor.Type} {SafetensorsHeader.Show(tensor.Shape)}; its source gave {amount}.");
    }

    private static void Write(string path, FileStream stream, ReadOnlySpan<byte> bytes)
    {
        try
        {
            stream.Write(bytes);
        }
        catch (IOException e)
        {
            throw CannotWrite(path, e);
        }
    }

    private static T Attempt<T>(string path, Func<T> action)
    {
        try
        {
            return action();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw CannotWrite(path, e);
        }
    }

    private static CompactorException CannotWrite(string path, Exception e) =>
        new(CompactorStatus.InvalidFile, $"'{path}' cannot be written: {e.Message}", e);

    private static void WriteValues<T>(ReadOnlySpan<T> values, SafetensorsPieceWriter write) where T : unmanaged
    {
        for (int done = 0; done < values.Length; done += PieceLength / 8)
            write(MemoryMarshal.AsBytes(values.Slice(done, Math.Min(PieceLength / 8, values.Length - done))));
    }

    private static void CheckText(string text)
    {
        for (int i = 0; i < text.Length; i += char.IsHighSurrogate(text[i]) ? 2 : 1)
            if (!Rune.TryGetRuneAt(text, i, out _))
                throw CompactorException.Argument($"{SafetensorsHeader.Quote(text)} holds half of a surrogate pair at index {i}, which UTF-8 cannot express.");
    }

    private sealed record Tensor(string Name, SafetensorsType Type, long[] Shape, long ByteLength, Action<SafetensorsPieceWriter> Source);
}
