namespace Compactor.Native.Io;

/// <summary>Element type of a tensor in a safetensors file; members are named as the file's <c>dtype</c> strings.</summary>
public enum SafetensorsType
{
    /// <summary>IEEE 754 binary64.</summary>
    F64,
    /// <summary>IEEE 754 binary32.</summary>
    F32,
    /// <summary>IEEE 754 binary16.</summary>
    F16,
    /// <summary>The upper 16 bits of a binary32.</summary>
    BF16,
    /// <summary>Signed 64-bit integer.</summary>
    I64,
    /// <summary>Signed 32-bit integer.</summary>
    I32,
    /// <summary>Signed 16-bit integer.</summary>
    I16,
    /// <summary>Signed 8-bit integer.</summary>
    I8,
    /// <summary>Unsigned 8-bit integer.</summary>
    U8,
    /// <summary>One byte, 0 or 1.</summary>
    BOOL,
    /// <summary>Unsigned 16-bit integer.</summary>
    U16,
    /// <summary>Unsigned 32-bit integer.</summary>
    U32,
    /// <summary>Unsigned 64-bit integer.</summary>
    U64,
    /// <summary>8-bit float of 4 exponent and 3 mantissa bits.</summary>
    F8_E4M3,
    /// <summary>8-bit float of 5 exponent and 2 mantissa bits.</summary>
    F8_E5M2,
}

/// <summary>Facts about a <see cref="SafetensorsType"/>.</summary>
public static class SafetensorsTypes
{
    /// <summary>Every type, by its <c>dtype</c> string.</summary>
    public static IReadOnlyDictionary<string, SafetensorsType> ByName { get; } =
        Enum.GetValues<SafetensorsType>().ToDictionary(type => type.ToString(), StringComparer.Ordinal);

    /// <summary>Bytes of one element.</summary>
    public static int Size(this SafetensorsType type) => type switch
    {
        SafetensorsType.F64 or SafetensorsType.I64 or SafetensorsType.U64 => 8,
        SafetensorsType.F32 or SafetensorsType.I32 or SafetensorsType.U32 => 4,
        SafetensorsType.F16 or SafetensorsType.BF16 or SafetensorsType.I16 or SafetensorsType.U16 => 2,
        SafetensorsType.I8 or SafetensorsType.U8 or SafetensorsType.BOOL or SafetensorsType.F8_E4M3 or SafetensorsType.F8_E5M2 => 1,
        _ => throw CompactorException.Argument($"There is no safetensors type {(int)type}; use a named member of {nameof(SafetensorsType)}."),
    };

    /// <summary>The matching type of a cache tensor, or null where scoring does not take it.</summary>
    public static ElementType? ToElementType(this SafetensorsType type) => type switch
    {
        SafetensorsType.F32 => ElementType.Float32,
        SafetensorsType.F16 => ElementType.Float16,
        SafetensorsType.BF16 => ElementType.BFloat16,
        _ => null,
    };

    /// <summary>The type that stores <paramref name="type"/>.</summary>
    public static SafetensorsType ToSafetensorsType(this ElementType type) => type switch
    {
        ElementType.Float32 => SafetensorsType.F32,
        ElementType.Float16 => SafetensorsType.F16,
        ElementType.BFloat16 => SafetensorsType.BF16,
        _ => throw CompactorException.Argument($"There is no element type {(int)type}; use a named member of {nameof(ElementType)}."),
    };
}
