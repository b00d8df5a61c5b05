using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>Where leverage reads rows from: a dense tensor, or the slots of a paged cache.</summary>
internal abstract unsafe class LeverageRows
{
    /// <summary>Loads rows as float32, rotated back where a rotation is to be undone.</summary>
    /// <returns>Whether every element is finite.</returns>
    public abstract bool Load(int b, int token, int count, int head, float* rows);

    /// <summary>The sequence and head that errors name.</summary>
    public abstract (int Sequence, int Head) Of(int b, int head);
}

internal sealed unsafe class DenseRows<TLanes, TVector>(TensorView keys, LayerShape shape, InverseRotation? rotation) : LeverageRows
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    public override bool Load(int b, int token, int count, int head, float* rows)
    {
        int start = shape.CuSeqlens[b];
        bool finite = RowLoader<TLanes, TVector>.Load(keys, b, start, token, count, head, rows);
        if (finite && rotation is not null)
            for (int i = 0; i < count; i++)
                RowLoader<TLanes, TVector>.Unrotate(rotation.Style, rotation.Cos(start + token + i), rotation.Pairs, rows + (long)i * keys.Dim);
        return finite;
    }

    public override (int, int) Of(int b, int head) => (b, head);
}

/// <summary>Slots of (sequence, head) rows, each of which counts as a sequence of one head.</summary>
internal sealed unsafe class PagedRows<TLanes, TVector>(PagedSlots slots, PagedTables tables, int kvHeads, PositionRotation? rotation) : LeverageRows
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    private readonly PagedView _cache = slots.Cache;

    public override bool Load(int b, int token, int count, int head, float* rows)
    {
        int* table = (int*)tables.Tables.Address + (long)b * tables.RowStride, positions = (int*)slots.Positions.Address;
        bool finite = true;
        for (int slot = token, end = token + count; slot < end;)
        {
            int block = table[slot / _cache.BlockSize], inBlock = slot % _cache.BlockSize, here = Math.Min(_cache.BlockSize - inBlock, end - slot);
            var view = new TensorView(_cache.Keys + (nint)_cache.Offset(block, inBlock, 0), _cache.ElementType, here, 1, _cache.Dim, _cache.SlotStride, 0);
            finite &= RowLoader<TLanes, TVector>.Load(view, 0, 0, 0, here, 0, rows);
            for (int i = 0; i < here; i++, rows += _cache.Dim)
                if (finite && rotation is not null)
                    RowLoader<TLanes, TVector>.Unrotate(rotation.Style, rotation.Cos(positions[(long)block * _cache.BlockSize + inBlock + i]), rotation.Pairs, rows);
            slot += here;
        }
        return finite;
    }

    public override (int, int) Of(int b, int head) => (b / kvHeads, b % kvHeads);
}
