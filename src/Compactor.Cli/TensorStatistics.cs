using System.Numerics;
using System.Runtime.InteropServices;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>Minimum, maximum, mean and population standard deviation of a tensor's finite elements, and how many are not finite.</summary>
internal sealed record TensorStatistics(double? Min, double? Max, double? Mean, double? Std, long NonFinite)
{
    private const int ChunkElements = 1 << 16;

    /// <summary>Reads a tensor once; null for types that have no arithmetic here (8-bit floats).</summary>
    public static TensorStatistics? Of(SafetensorsTensor tensor) => tensor.Type switch
    {
        SafetensorsType.F64 => Of<double>(tensor, x => x),
        SafetensorsType.F32 => Of<float>(tensor, x => x),
        SafetensorsType.F16 => Of<Half>(tensor, x => (double)x),
        SafetensorsType.BF16 => Of<ushort>(tensor, x => BitConverter.UInt32BitsToSingle((uint)x << 16)),
        SafetensorsType.I64 => Of<long>(tensor, x => x),
        SafetensorsType.I32 => Of<int>(tensor, x => x),
        SafetensorsType.I16 => Of<short>(tensor, x => x),
        SafetensorsType.I8 => Of<sbyte>(tensor, x => x),
        SafetensorsType.U64 => Of<ulong>(tensor, x => x),
        SafetensorsType.U32 => Of<uint>(tensor, x => x),
        SafetensorsType.U16 => Of<ushort>(tensor, x => x),
        SafetensorsType.U8 or SafetensorsType.BOOL => Of<byte>(tensor, x => x),
        _ => null,
    };

    private static TensorStatistics Of<T>(SafetensorsTensor tensor, Func<T, double> convert) where T : unmanaged, INumberBase<T>
    {
        double min = double.PositiveInfinity, max = double.NegativeInfinity, sum = 0, squares = 0, shift = double.NaN;
        long finite = 0, size = tensor.Type.Size();
        for (long first = 0; first < tensor.Elements; first += ChunkElements)
        {
            int count = (int)Math.Min(ChunkElements, tensor.Elements - first);
            foreach (var element in MemoryMarshal.Cast<byte, T>(tensor.Bytes(first * size, (int)(count * size))))
            {
                double x = convert(element);
                if (!double.IsFinite(x))
                    continue;
                // Sums of differences from the first element keep their digits when the mean is far from 0.
                if (finite++ == 0)
                    shift = x;
                (min, max) = (Math.Min(min, x), Math.Max(max, x));
                sum += x - shift;
                squares += (x - shift) * (x - shift);
            }
        }
        if (finite == 0)
            return new TensorStatistics(null, null, null, null, tensor.Elements);
        double mean = sum / finite;
        return new TensorStatistics(min, max, shift + mean, Math.Sqrt(Math.Max(0, squares / finite - mean * mean)), tensor.Elements - finite);
    }
}
