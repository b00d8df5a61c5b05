namespace Compactor.Native.Paging;

/// <summary>
/// Which blocks of a pool are free: pure bookkeeping, no memory behind it. The last block freed is the first taken again, so the same operations always
/// give the same ids. Constant time a block. Not synchronised.
/// </summary>
public sealed class BlockPool
{
    private readonly int[] _free;
    private readonly bool[] _taken;
    private int _freeCount;

    /// <summary>Creates a pool whose blocks, 0 to <paramref name="blocks"/> - 1, are all free; 0 is taken first.</summary>
    /// <exception cref="CompactorException">The number is negative.</exception>
    public BlockPool(int blocks)
    {
        if (blocks < 0)
            throw CompactorException.Argument($"A pool cannot have {blocks} blocks; use 0 or more.");
        _free = new int[blocks];
        _taken = new bool[blocks];
        _freeCount = blocks;
        for (int i = 0; i < blocks; i++)
            _free[i] = blocks - 1 - i;
    }

    /// <summary>Blocks in all.</summary>
    public int Blocks => _free.Length;

    /// <summary>Blocks that are free.</summary>
    public int FreeBlocks => _freeCount;

    /// <summary>Takes as many blocks as <paramref name="ids"/> holds, or none.</summary>
    /// <returns>Whether there were enough; if not, nothing changed.</returns>
    public bool TryTake(Span<int> ids)
    {
        if (ids.Length > _freeCount)
            return false;
        for (int i = 0; i < ids.Length; i++)
        {
            int id = _free[--_freeCount];
            _taken[id] = true;
            ids[i] = id;
        }
        return true;
    }

    /// <summary>Gives blocks back.</summary>
    /// <exception cref="CompactorException">A block is not of this pool, or is free already; the blocks before it were given back.</exception>
    public void Give(ReadOnlySpan<int> ids)
    {
        foreach (int id in ids)
        {
            if ((uint)id >= (uint)_taken.Length || !_taken[id])
                throw CompactorException.Argument($"Block {id} cannot be given back: {((uint)id >= (uint)_taken.Length ? $"the pool has {_taken.Length}" : "it is free")}.");
            _taken[id] = false;
            _free[_freeCount++] = id;
        }
    }
}
