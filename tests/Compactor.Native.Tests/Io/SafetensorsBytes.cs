using System.Buffers.Binary;
using System.Text;

namespace Compactor.Native.Tests.Io;

/// <summary>Safetensors files put together by hand, so that they can be wrong in one chosen way.</summary>
internal static class SafetensorsBytes
{
    /// <summary>Length, header padded with spaces to a multiple of 8, then data bytes 0, 1, 2, ...</summary>
    public static byte[] File(string json, int dataLength) => FileOf(Encoding.UTF8.GetBytes(json.PadRight((Encoding.UTF8.GetByteCount(json) + 7) / 8 * 8)), dataLength);

    public static byte[] FileOf(byte[] header, int dataLength, ulong? statedLength = null)
    {
        var file = new byte[8 + header.Length + dataLength];
        BinaryPrimitives.WriteUInt64LittleEndian(file, statedLength ?? (ulong)header.Length);
        header.CopyTo(file.AsSpan(8));
        for (int i = 0; i < dataLength; i++)
            file[8 + header.Length + i] = (byte)i;
        return file;
    }

    public static string Tensor(string name, string type, string shape, string offsets) =>
        $$"""
        "{{name}}":{"dtype":"{{type}}","shape":{{shape}},"data_offsets":{{offsets}}}
        """;
}
