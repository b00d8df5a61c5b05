using System.Numerics;
using System.Numerics.Tensors;

namespace Compactor.Native.Io;

/// <summary>
/// A tensor of an open <see cref="SafetensorsFile"/>: row-major, little-endian, read-only, and only while the file is not disposed.
/// </summary>
public sealed class SafetensorsTensor
{
    private readonly SafetensorsFile _file;
    private readonly nint _address;

    internal SafetensorsTensor(SafetensorsFile file, nint address, in SafetensorsHeader.Entry entry)
    {
        _file = file;
        _address = address;
        Name = entry.Name;
        Type = entry.Type;
        Shape = Array.AsReadOnly(entry.Shape);
        ByteLength = entry.End - entry.Begin;
    }

    /// <summary>Name, unique in the file.</summary>
    public string Name { get; }

    /// <summary>Type of one element.</summary>
    public SafetensorsType Type { get; }

    /// <summary>Dimensions, the last one dense; empty for a scalar. A dimension may be 0.</summary>
    public IReadOnlyList<long> Shape { get; }

    /// <summary>Bytes of all elements.</summary>
    public long ByteLength { get; }

    /// <summary>Number of elements: the product of <see cref="Shape"/>.</summary>
    public long Elements => ByteLength / Type.Size();

    /// <summary>Address of the first element, a multiple of the element size. Writing there is a fault.</summary>
    /// <exception cref="ObjectDisposedException">The file is disposed.</exception>
    public nint Address
    {
        get
        {
            _file.ThrowIfDisposed();
            return _address;
        }
    }

    /// <summary>All bytes.</summary>
    /// <exception cref="CompactorException">They exceed the 2 GiB a span can hold.</exception>
    /// <exception cref="ObjectDisposedException">The file is disposed.</exception>
    public ReadOnlySpan<byte> Bytes() => ByteLength <= int.MaxValue
        ? Bytes(0, (int)ByteLength)
        : throw CompactorException.Unsupported($"{Described} has {ByteLength} bytes, more than a span holds; read it in parts or use its address.");

    /// <summary>A part of the bytes.</summary>
    /// <param name="offset">First byte, from the start of the tensor.</param>
    /// <param name="length">Number of bytes.</param>
    /// <exception cref="CompactorException">The part does not lie inside the tensor.</exception>
    /// <exception cref="ObjectDisposedException">The file is disposed.</exception>
    public unsafe ReadOnlySpan<byte> Bytes(long offset, int length) => offset >= 0 && length >= 0 && offset <= ByteLength - length
        ? new ReadOnlySpan<byte>((byte*)Address + offset, length)
        : throw CompactorException.Argument($"{length} bytes at {offset} do not lie inside the {ByteLength} bytes of {Described}.");

    /// <summary>All elements as float32: F32, F16 and BF16 exactly, F64 rounded.</summary>
    /// <exception cref="CompactorException">The type is none of these, or there are more elements than an array holds.</exception>
    /// <exception cref="ObjectDisposedException">The file is disposed.</exception>
    public float[] ToFloat32()
    {
        switch (Type)
        {
            case SafetensorsType.F32:
                return Span<float>().ToArray();
            case SafetensorsType.F64:
                var fromDouble = new float[Length];
                TensorPrimitives.ConvertTruncating(Span<double>(), fromDouble);
                return fromDouble;
            case SafetensorsType.F16:
                var fromHalf = new float[Length];
                TensorPrimitives.ConvertToSingle(Span<Half>(), fromHalf);
                return fromHalf;
            case SafetensorsType.BF16:
                var fromBFloat16 = new float[Length];
                var bits = Span<ushort>();
                for (int i = 0; i < bits.Length; i++)
                    fromBFloat16[i] = BitConverter.Int32BitsToSingle(bits[i] << 16);
                return fromBFloat16;
            default:
                throw CompactorException.Unsupported($"{Described} is not read as float32; its type must be F32, F16, BF16 or F64.");
        }
    }

    /// <summary>All elements as int32, from any integer type or BOOL.</summary>
    /// <exception cref="CompactorException">The type is a float, an element exceeds int32, or there are more elements than an array holds.</exception>
    /// <exception cref="ObjectDisposedException">The file is disposed.</exception>
    public int[] ToInt32() => Type switch
    {
        SafetensorsType.I32 => Span<int>().ToArray(),
        SafetensorsType.I64 => Integers<long>(),
        SafetensorsType.I16 => Integers<short>(),
        SafetensorsType.I8 => Integers<sbyte>(),
        SafetensorsType.U8 or SafetensorsType.BOOL => Integers<byte>(),
        SafetensorsType.U16 => Integers<ushort>(),
        SafetensorsType.U32 => Integers<uint>(),
        SafetensorsType.U64 => Integers<ulong>(),
        _ => throw CompactorException.Unsupported($"{Described} is not read as int32; its type must be an integer."),
    };

    /// <summary>Name, type and shape.</summary>
    public override string ToString() => $"{Name} {Type} {SafetensorsHeader.Show(Shape)}";

    private string Described => $"{_file.Path}: tensor {SafetensorsHeader.Quote(Name)} ({Type} {SafetensorsHeader.Show(Shape)})";

    private int Length => Elements <= Array.MaxLength
        ? (int)Elements
        : throw CompactorException.Unsupported($"{Described} has {Elements} elements, more than an array holds; read its bytes in parts.");

    private unsafe ReadOnlySpan<T> Span<T>() where T : unmanaged => new((void*)Address, Length);

    private int[] Integers<T>() where T : unmanaged, IBinaryInteger<T>
    {
        var values = Span<T>();
        var result = new int[values.Length];
        for (int i = 0; i < values.Length; i++)
        {
            result[i] = int.CreateTruncating(values[i]);
            if (T.CreateTruncating(result[i]) != values[i] || T.IsNegative(values[i]) != (result[i] < 0))
                throw new CompactorException(CompactorStatus.InvalidFile, $"{Described} holds {values[i]} at index {i}, which does not fit in int32.");
        }
        return result;
    }
}
