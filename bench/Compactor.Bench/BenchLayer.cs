using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Bench;

/// <summary>One layer's cache of seeded Gaussian data; logits have a standard deviation of about 3.</summary>
internal sealed class BenchLayer : IDisposable
{
    /// <summary>Most tokens of the reference layer: a tensor's elements are counted in 32 bits.</summary>
    public const int MostTokens = int.MaxValue / (32 * 128);

    private readonly List<BackendBuffer<byte>> _memory = [];

    public BenchLayer(KvBackend backend, int tokens, ElementType type = ElementType.Float32, int queryHeads = 32, int kvHeads = 8, int dim = 128, ulong seed = 1)
    {
        Shape = new LayerShape([0, tokens], queryHeads, kvHeads, dim, type);
        Inputs = new LayerInputs
        {
            KeyPreRope = Draw(0, kvHeads, 1),
            Query = Draw(1, queryHeads, 3 / MathF.Sqrt(dim)),
            Key = Draw(2, kvHeads, 1),
            Value = Draw(3, kvHeads, 1),
        };

        TensorView Draw(uint stream, int heads, float scale)
        {
            int count = tokens * heads * dim;
            var buffer = backend.Allocate<byte>((long)count * type.Size());
            _memory.Add(buffer);
            Fill(buffer.View.Address, count, type, stream, seed, scale);
            return TensorView.Packed(buffer.View.Address, type, tokens, heads, dim);
        }
    }

    public LayerShape Shape { get; }

    public LayerInputs Inputs { get; }

    private static unsafe void Fill(nint address, int count, ElementType type, uint stream, ulong seed, float scale) =>
        Parallel.For(0, (count + 3) / 4, block =>
        {
            Span<double> normals = stackalloc double[4];
            Philox.Normals((uint)block, stream, 0, 0, seed, normals);
            for (int i = 4 * block; i < Math.Min(count, 4 * block + 4); i++)
            {
                float x = (float)normals[i % 4] * scale;
                switch (type)
                {
                    case ElementType.Float32: ((float*)address)[i] = x; break;
                    case ElementType.Float16: ((Half*)address)[i] = (Half)x; break;
                    default: ((ushort*)address)[i] = (ushort)(BitConverter.SingleToUInt32Bits(x) >> 16); break;
                }
            }
        });

    public void Dispose() => _memory.ForEach(m => m.Dispose());
}
