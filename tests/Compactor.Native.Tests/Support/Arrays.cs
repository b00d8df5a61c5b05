using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Compactor.Native.Tests.Support;

/// <summary>Pinned arrays behind views, conversions and distances.</summary>
internal static unsafe class Arrays
{
    /// <summary>Element types that can be scored and attended to.</summary>
    public static ElementType[] FloatTypes { get; } = [ElementType.Float32, ElementType.Float16, ElementType.BFloat16];

    /// <summary>Stores float values in an element type, in memory that stays in place.</summary>
    public static byte[] Encode(ReadOnlySpan<float> values, ElementType type)
    {
        byte[] bytes = GC.AllocateUninitializedArray<byte>(Math.Max(1, values.Length * type.Size()), pinned: true);
        switch (type)
        {
            case ElementType.Float32:
                MemoryMarshal.AsBytes(values).CopyTo(bytes);
                break;
            case ElementType.Float16:
                TensorPrimitives.ConvertToHalf(values, MemoryMarshal.Cast<byte, Half>(bytes.AsSpan()));
                break;
            case ElementType.BFloat16:
                var upper = MemoryMarshal.Cast<byte, ushort>(bytes.AsSpan());
                for (int i = 0; i < values.Length; i++)
                    upper[i] = (ushort)(RoundToBFloat16(values[i]) >> 16);
                break;
            default:
                throw new ArgumentOutOfRangeException(nameof(type), type, "no float format");
        }
        return bytes;
    }

    /// <summary>The values that <see cref="Encode"/> stored.</summary>
    public static float[] Decode(byte[] bytes, ElementType type) => type switch
    {
        ElementType.Float32 => MemoryMarshal.Cast<byte, float>(bytes).ToArray(),
        ElementType.Float16 => [.. MemoryMarshal.Cast<byte, Half>(bytes).ToArray().Select(x => (float)x)],
        ElementType.BFloat16 => [.. MemoryMarshal.Cast<byte, ushort>(bytes).ToArray().Select(x => BitConverter.Int32BitsToSingle(x << 16))],
        _ => throw new ArgumentOutOfRangeException(nameof(type), type, "no float format"),
    };

    private static uint RoundToBFloat16(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        return float.IsFinite(value) ? bits + 0x7FFF + (bits >> 16 & 1) : bits;
    }

    public static nint Address(byte[] pinned) => Marshal.UnsafeAddrOfPinnedArrayElement(pinned, 0);

    /// <summary>||a - b|| / ||b||.</summary>
    public static double RelativeError(ReadOnlySpan<float> a, ReadOnlySpan<float> b)
    {
        Xunit.Assert.Equal(b.Length, a.Length);
        double difference = 0, norm = 0;
        for (int i = 0; i < a.Length; i++)
        {
            difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
            norm += (double)b[i] * b[i];
        }
        return Math.Sqrt(difference / Math.Max(norm, 1e-300));
    }

    public static float[] Copy(BackendBuffer<float>? buffer) => buffer!.View.AsSpan().ToArray();

    public static int[] Copy(BackendBuffer<int> buffer) => buffer.View.AsSpan().ToArray();
}
