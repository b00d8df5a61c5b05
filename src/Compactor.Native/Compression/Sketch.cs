namespace Compactor.Native.Compression;

/// <summary>
/// The Gaussian right sketches Phi <c>[D, k]</c> of one layer, entries N(0, 1/k) rounded to bfloat16 and held as float32.
/// Entry e of a Phi is normal e mod 4 of Philox counter (e / 4, layer+1 | (head+1) &lt;&lt; 16, id low, id high) under the seed,
/// with 0 in place of what the sharing leaves out, times 1/sqrt(k); row-major in [D, k].
/// </summary>
public sealed class Sketch
{
    private readonly float[] _phi;
    private readonly int _heads;

    private Sketch(float[] phi, int dim, int columns, int count, int heads) =>
        (_phi, Dim, Columns, Count, _heads) = (phi, dim, columns, count, heads);

    /// <summary>Rows D.</summary>
    public int Dim { get; }

    /// <summary>Columns k.</summary>
    public int Columns { get; }

    /// <summary>Distinct Phi: 1, or B·Hkv.</summary>
    public int Count { get; }

    /// <summary>Draws the sketches a layer needs.</summary>
    /// <exception cref="CompactorException">Those of each sequence and head do not fit one array.</exception>
    public static Sketch Draw(LayerShape shape, CompressionOptions options)
    {
        int dim = shape.HeadDim, k = options.SketchDimension;
        if (options.SketchSharing != SketchSharing.PerSequenceHead)
        {
            var phi = new float[dim * k];
            Fill(phi, k, options.Seed, options.SketchSharing == SketchSharing.PerLayer ? (uint)shape.Layer + 1 : 0, 0, 0);
            return new Sketch(phi, dim, k, 1, 0);
        }
        long entries = (long)shape.Sequences * shape.KvHeads * dim * k;
        if (entries > Array.MaxLength)
            throw CompactorException.Unsupported(
                $"A Phi [{dim}, {k}] for each of {shape.Sequences} sequences and {shape.KvHeads} KV heads takes {entries} entries; at most {Array.MaxLength} can be held. " +
                $"Split the batch, or share Phi ({nameof(CompressionOptions.SketchSharing)}).");
        var all = new float[entries];
        for (int b = 0; b < shape.Sequences; b++)
            for (int h = 0; h < shape.KvHeads; h++)
                Fill(all.AsSpan((b * shape.KvHeads + h) * dim * k, dim * k), k, options.Seed, (uint)shape.Layer + 1,
                    (uint)(shape.FirstHead + h) + 1, (ulong)shape.IdOf(b));
        return new Sketch(all, dim, k, shape.Sequences * shape.KvHeads, shape.KvHeads);
    }

    /// <summary>Takes given sketches instead of drawing them.</summary>
    /// <param name="phi">One Phi <c>[D, k]</c>, or <c>[B, Hkv, D, k]</c>, row-major.</param>
    /// <param name="shape">Shape of the layer.</param>
    /// <param name="columns">Columns k: 16 to 128 in steps of 16.</param>
    /// <exception cref="CompactorException">The number of entries fits neither form, or an entry is not finite.</exception>
    public static Sketch FromValues(ReadOnlySpan<float> phi, LayerShape shape, int columns)
    {
        if (columns is < 16 or > 128 || columns % 16 != 0)
            throw CompactorException.Unsupported($"Phi has {columns} columns; use 16 to 128 in steps of 16.");
        long one = (long)shape.HeadDim * columns;
        int count = phi.Length == one ? 1 : shape.Sequences * shape.KvHeads;
        if (phi.Length != one * count)
            throw CompactorException.Argument(
                $"Phi has {phi.Length} entries; expected {one} ([D, k] = [{shape.HeadDim}, {columns}]) or that for each of {shape.Sequences} sequences and {shape.KvHeads} KV heads.");
        foreach (float x in phi)
            if (!float.IsFinite(x))
                throw new CompactorException(CompactorStatus.NonFinite, $"Phi holds {x}; every entry must be finite.");
        return new Sketch(phi.ToArray(), shape.HeadDim, columns, count, count == 1 ? 0 : shape.KvHeads);
    }

    /// <summary>The same sketches where each (sequence, head) counts as a sequence of one head.</summary>
    internal Sketch PerHead() => new(_phi, Dim, Columns, Count, Math.Min(_heads, 1));

    /// <summary>Phi <c>[D, k]</c>, row-major, of one head of one sequence.</summary>
    public ReadOnlySpan<float> Of(int sequence, int head) =>
        _phi.AsSpan((Count == 1 ? 0 : sequence * _heads + head) * Dim * Columns, Dim * Columns);

    /// <summary>Phi <c>[D, k]</c> by its index among the distinct ones.</summary>
    internal ReadOnlySpan<float> At(int index) => _phi.AsSpan(index * Dim * Columns, Dim * Columns);

    private static void Fill(Span<float> phi, int columns, ulong seed, uint layer, uint head, ulong sequenceId)
    {
        double scale = 1 / Math.Sqrt(columns);
        Span<double> normals = stackalloc double[4];
        for (int e = 0; e < phi.Length; e += 4)
        {
            Philox.Normals((uint)(e / 4), layer | head << 16, (uint)sequenceId, (uint)(sequenceId >> 32), seed, normals);
            for (int i = 0; i < 4; i++)
                phi[e + i] = RoundToBFloat16((float)(normals[i] * scale));
        }
    }

    /// <summary>Rounds to the nearest bfloat16, halves to even.</summary>
    internal static float RoundToBFloat16(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        bits += 0x7FFF + (bits >> 16 & 1);
        return BitConverter.UInt32BitsToSingle(bits & 0xFFFF0000);
    }
}
