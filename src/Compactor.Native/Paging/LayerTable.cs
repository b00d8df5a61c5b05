namespace Compactor.Native.Paging;

/// <summary>Block table and lengths of one layer of one sequence. The first <see cref="Shared"/> blocks of a head belong to the sequence's shared prefix.</summary>
internal sealed class LayerTable
{
    public LayerTable(int kvHeads)
    {
        (Rows, Lengths, Shared) = (new List<int>[kvHeads], new int[kvHeads], new int[kvHeads]);
        for (int head = 0; head < kvHeads; head++)
            Rows[head] = [];
    }

    public List<int>[] Rows { get; private set; }

    public int[] Lengths { get; private set; }

    public int[] Shared { get; private set; }

    /// <summary>A position above every stored one.</summary>
    public int PositionEnd { get; set; }

    /// <summary>Whether a compaction, or a store of survivors, is between its two phases.</summary>
    public bool IsPending { get; set; }

    /// <summary>Tokens of all heads.</summary>
    public long Pairs
    {
        get
        {
            long pairs = 0;
            foreach (int length in Lengths)
                pairs += length;
            return pairs;
        }
    }

    /// <summary>Blocks that the layer's heads own themselves.</summary>
    public int[] OwnBlocks()
    {
        int count = 0;
        for (int head = 0; head < Rows.Length; head++)
            count += Rows[head].Count - Shared[head];
        var blocks = new int[count];
        for (int head = 0, at = 0; head < Rows.Length; head++)
        {
            int own = Rows[head].Count - Shared[head];
            Rows[head].CopyTo(Shared[head], blocks, at, own);
            at += own;
        }
        return blocks;
    }

    /// <summary>Tokens in them.</summary>
    public long OwnPairs(int blockSize)
    {
        long pairs = Pairs;
        foreach (int shared in Shared)
            pairs -= (long)shared * blockSize;
        return pairs;
    }

    public bool UsesPrefix => Array.Exists(Shared, count => count > 0);

    /// <summary>Replaces everything.</summary>
    public void Become(List<int>[] rows, int[] lengths, int[] shared) => (Rows, Lengths, Shared) = (rows, lengths, shared);
}
