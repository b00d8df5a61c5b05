namespace Compactor.Native.Gpu;

/// <summary>One kernel as it is compiled: an entry point of a source under <c>cuda/</c> and the macros it is specialised by.</summary>
internal sealed class KernelVariant : IEquatable<KernelVariant>
{
    /// <param name="source">File name without folder: <c>store.cu</c>.</param>
    /// <param name="entry">Name of the <c>extern "C"</c> kernel.</param>
    /// <param name="macros">Macros without their prefix <c>COMPACTOR_</c>, and values.</param>
    public KernelVariant(string source, string entry, params ReadOnlySpan<(string Name, int Value)> macros)
    {
        (Source, Entry) = (source, entry);
        var ordered = macros.ToArray();
        Array.Sort(ordered, (a, b) => string.CompareOrdinal(a.Name, b.Name));
        Macros = [.. ordered.Select(m => ($"COMPACTOR_{m.Name}", m.Value))];
        Module = string.Join(' ', [source, .. Macros.Select(m => $"{m.Name}={m.Value}")]);
    }

    public string Source { get; }

    public string Entry { get; }

    /// <summary>Macros with their full names, in ordinal order.</summary>
    public IReadOnlyList<(string Name, int Value)> Macros { get; }

    /// <summary>Whether it is written for sm_90a: compiled for the device's very architecture.</summary>
    public bool IsSpecific { get; init; }

    /// <summary>What is compiled together: the source and its macros; entries of one module share a compilation.</summary>
    public string Module { get; }

    public bool Equals(KernelVariant? other) => other is not null && Module == other.Module && Entry == other.Entry;

    public override bool Equals(object? obj) => Equals(obj as KernelVariant);

    public override int GetHashCode() => HashCode.Combine(Module, Entry);

    public override string ToString() => $"{Entry} ({Module})";
}
