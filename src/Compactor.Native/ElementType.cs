namespace Compactor.Native;

/// <summary>Element type of keys, queries and values.</summary>
public enum ElementType
{
    /// <summary>IEEE 754 binary32.</summary>
    Float32,
    /// <summary>IEEE 754 binary16.</summary>
    Float16,
    /// <summary>The upper 16 bits of a binary32.</summary>
    BFloat16,
    /// <summary>One byte of a format this library does not read (FP8, INT8): stored, moved and compacted, never scored.</summary>
    Opaque8,
}

/// <summary>Facts about an <see cref="ElementType"/>.</summary>
public static class ElementTypes
{
    /// <summary>Bytes of one element.</summary>
    public static int Size(this ElementType type) => type switch { ElementType.Float32 => 4, ElementType.Opaque8 => 1, _ => 2 };
}
