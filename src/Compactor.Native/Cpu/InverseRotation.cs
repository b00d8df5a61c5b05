using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>
/// The rotation of every packed token, already inverted (divided by c² + s²) and in float32: <c>[N, 2, R/2]</c>, cosines then sines.
/// Made once per call so that heads share it.
/// </summary>
internal sealed unsafe class InverseRotation : IDisposable
{
    private readonly RotationTable _table;

    public InverseRotation(RotaryEmbedding rotary, LayerShape shape, Workers workers)
    {
        _table = new RotationTable(rotary, shape.Tokens, workers);
        for (int b = 0; b < shape.Sequences; b++)
        {
            int start = shape.CuSeqlens[b];
            _table.Fill(start, shape.LengthOf(b), row => (row, row - start));
        }
    }

    public int Pairs => _table.Pairs;

    public RotaryStyle Style => _table.Style;

    /// <summary>The R/2 cosines of a token; its sines follow them.</summary>
    public float* Cos(int packedToken) => _table.Row(packedToken);

    public void Dispose() => _table.Dispose();
}

/// <summary>The inverted rotation of every position that slots of a cache have, once however many slots have it.</summary>
internal sealed unsafe class PositionRotation : IDisposable
{
    private readonly RotationTable _table;
    private readonly int[] _positions;

    /// <exception cref="CompactorException">A position is negative, or beyond the rotation's tables.</exception>
    public PositionRotation(RotaryEmbedding rotary, LayerShape shape, PagedSlots slots, PagedTables tables, Workers workers)
    {
        int[] all = new int[shape.Pairs];
        int blockSize = slots.Cache.BlockSize, next = 0;
        for (int row = 0; row < shape.Sequences * shape.KvHeads; row++)
        {
            int* table = (int*)tables.Tables.Address + (long)row * tables.RowStride;
            for (int slot = 0, length = shape.CuSeqlens[row + 1] - shape.CuSeqlens[row]; slot < length; slot += blockSize)
            {
                int here = Math.Min(blockSize, length - slot);
                new ReadOnlySpan<int>((int*)slots.Positions.Address + (long)table[slot / blockSize] * blockSize, here).CopyTo(all.AsSpan(next));
                next += here;
            }
        }
        Array.Sort(all);
        int distinct = 0;
        for (int i = 0; i < all.Length; i++)
            if (i == 0 || all[i] != all[i - 1])
                all[distinct++] = all[i];
        _positions = all[..distinct];
        if (distinct > 0 && _positions[0] < 0)
            throw CompactorException.Argument($"Layer {shape.Layer}: a slot of the cache has position {_positions[0]}; positions are 0 or more.");
        rotary.ValidateStored(shape.HeadDim, distinct == 0 ? 0 : _positions[^1] + 1);
        _table = new RotationTable(rotary, distinct, workers);
        _table.Fill(0, distinct, row => (_positions[row], _positions[row]));
    }

    public int Pairs => _table.Pairs;

    public RotaryStyle Style => _table.Style;

    /// <summary>The R/2 cosines of a position; its sines follow them.</summary>
    public float* Cos(int position) => _table.Row(Array.BinarySearch(_positions, position));

    public void Dispose() => _table.Dispose();
}

internal sealed unsafe class RotationTable(RotaryEmbedding rotary, int rows, Workers workers) : IDisposable
{
    private readonly Workers.Workspace _table = workers.Rent((long)rows * rotary.RotaryDim * sizeof(float));

    public int Pairs => rotary.RotaryDim / 2;

    public RotaryStyle Style => rotary.Style;

    public float* Row(int row) => (float*)_table.Address + (long)row * rotary.RotaryDim;

    /// <summary>Fills rows; <paramref name="of"/> gives the packed token and the position that the embedding is asked for.</summary>
    public void Fill(int first, int count, Func<int, (int PackedToken, int Token)> of)
    {
        const int block = 512;
        var angles = new InverseAngles(rotary);
        workers.Run((count + block - 1) / block, 0, (item, _) =>
            angles.Fill(first + item * block, Math.Min(block, count - item * block), of, Row(first + item * block)));
    }

    public void Dispose() => _table.Dispose();
}
