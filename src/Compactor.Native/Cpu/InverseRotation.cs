using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>
/// The rotation of every packed token, already inverted (divided by c² + s²) and in float32: <c>[N, 2, R/2]</c>, cosines then sines.
/// Made once per call so that heads share it.
/// </summary>
internal sealed unsafe class InverseRotation : IDisposable
{
    private readonly Workers.Workspace _table;

    public InverseRotation(RotaryEmbedding rotary, LayerShape shape, Workers workers)
    {
        (Pairs, Style) = (rotary.RotaryDim / 2, rotary.Style);
        _table = workers.Rent((long)shape.Tokens * 2 * Pairs * sizeof(float));
        const int block = 512;
        for (int b = 0; b < shape.Sequences; b++)
        {
            int start = shape.CuSeqlens[b], length = shape.LengthOf(b);
            workers.Run((length + block - 1) / block, 2L * Pairs * sizeof(double), (item, scratch) =>
            {
                Span<double> cos = new((double*)scratch, Pairs), sin = new((double*)scratch + Pairs, Pairs);
                for (int t = item * block; t < Math.Min(length, (item + 1) * block); t++)
                {
                    rotary.Angles(start + t, t, cos, sin);
                    float* row = Cos(start + t);
                    for (int p = 0; p < Pairs; p++)
                    {
                        double power = cos[p] * cos[p] + sin[p] * sin[p];
                        row[p] = (float)(cos[p] / power);
                        row[p + Pairs] = (float)(sin[p] / power);
                    }
                }
            });
        }
    }

    public int Pairs { get; }

    public RotaryStyle Style { get; }

    /// <summary>The R/2 cosines of a token; its sines follow them.</summary>
    public float* Cos(int packedToken) => (float*)_table.Address + (long)packedToken * 2 * Pairs;

    public void Dispose() => _table.Dispose();
}
