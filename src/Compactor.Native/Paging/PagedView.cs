namespace Compactor.Native.Paging;

/// <summary>
/// A strided view of the keys and values of a paged cache, in memory the backend can reach; it owns nothing. Element d of a slot is at
/// <c>block·BlockStride + slot·SlotStride + head·HeadStride + d</c>, strides in elements, the same for keys and values.
/// </summary>
/// <param name="Keys">Address of block 0 of the keys.</param>
/// <param name="Values">Address of block 0 of the values.</param>
/// <param name="ElementType">Type of one element.</param>
/// <param name="BlockSize">Slots of a block.</param>
/// <param name="Dim">Head dimension D.</param>
/// <param name="BlockStride">Elements from one block to the next.</param>
/// <param name="SlotStride">Elements from one slot of a block to the next.</param>
/// <param name="HeadStride">Elements from one KV head to the next within a block; 0 where a block holds one head.</param>
public readonly record struct PagedView(
    nint Keys, nint Values, ElementType ElementType, int BlockSize, int Dim, long BlockStride, long SlotStride, long HeadStride)
{
    /// <summary>A pool of head-blocks, <c>[blocks, block_size, D]</c>.</summary>
    public static PagedView HeadBlocks(nint keys, nint values, ElementType type, int blockSize, int dim) =>
        new(keys, values, type, blockSize, dim, (long)blockSize * dim, dim, 0);

    /// <summary>A host's cache whose blocks hold all heads of a token together, <c>[blocks, block_size, Hkv, D]</c>.</summary>
    public static PagedView Nhd(nint keys, nint values, ElementType type, int blockSize, int kvHeads, int dim) =>
        new(keys, values, type, blockSize, dim, (long)blockSize * kvHeads * dim, (long)kvHeads * dim, dim);

    /// <summary>A host's cache whose blocks hold all tokens of a head together, <c>[blocks, Hkv, block_size, D]</c>.</summary>
    public static PagedView Hnd(nint keys, nint values, ElementType type, int blockSize, int kvHeads, int dim) =>
        new(keys, values, type, blockSize, dim, (long)kvHeads * blockSize * dim, dim, (long)blockSize * dim);

    /// <summary>Checks addresses, sizes and strides: no two slots may share memory.</summary>
    /// <param name="kvHeads">KV heads of a block; 1 where heads have tables of their own.</param>
    /// <exception cref="CompactorException">Something cannot be; the message names it.</exception>
    internal void Validate(int kvHeads)
    {
        if (BlockSize < 1)
            throw CompactorException.Argument($"The block size is {BlockSize}; use 1 or more slots.");
        if (kvHeads < 1 || Dim < 1)
            throw CompactorException.Argument($"There are {kvHeads} KV heads and the dimension is {Dim}; use 1 or more.");
        if (Keys == 0 || Values == 0)
            throw CompactorException.Argument($"The cache's {(Keys == 0 ? "keys" : "values")} have a null address.");
        if (Keys % ElementType.Size() != 0 || Values % ElementType.Size() != 0)
            throw CompactorException.Argument($"The cache's {(Keys % ElementType.Size() != 0 ? "keys" : "values")} are not aligned to their {ElementType.Size()}-byte elements.");
        Int128 slots = (Int128)SlotStride * BlockSize, heads = (Int128)HeadStride * kvHeads;
        bool apart = kvHeads == 1 ? SlotStride >= Dim && slots <= BlockStride
            : SlotStride <= HeadStride ? SlotStride >= Dim && slots <= HeadStride && heads <= BlockStride
            : HeadStride >= Dim && heads <= SlotStride && slots <= BlockStride;
        if (!apart)
            throw CompactorException.Argument(
                $"Blocks of {BlockSize} slots of {kvHeads} KV heads of {Dim} elements overlap with strides of {BlockStride} (block), {SlotStride} (slot) and {HeadStride} (head) elements.");
    }

    /// <summary>Bytes from the start of the keys, or of the values, to a slot.</summary>
    internal long Offset(int block, int slot, int head) => (block * BlockStride + slot * SlotStride + head * HeadStride) * ElementType.Size();
}

/// <summary>Block tables and lengths of a batch, as attention reads them.</summary>
/// <param name="Tables">
/// <c>[rows, RowStride]</c> block ids, one row for each (sequence, KV head), sequence by sequence, or one for each sequence where all heads share it.
/// </param>
/// <param name="RowStride">Entries from one row to the next.</param>
/// <param name="Lengths"><c>[rows]</c> tokens held.</param>
public readonly record struct PagedTables(BufferView<int> Tables, int RowStride, BufferView<int> Lengths);
