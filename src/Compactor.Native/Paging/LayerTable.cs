namespace Compactor.Native.Paging;

/// <summary>Block table and lengths of one layer of one sequence. The first <see cref="Shared"/> blocks of a head belong to the sequence's shared prefix.</summary>
internal sealed class LayerTable(int kvHeads)
{
    public List<int>[] Rows { get; private set; } = [.. Enumerable.Range(0, kvHeads).Select(_ => new List<int>())];

    public int[] Lengths { get; private set; } = new int[kvHeads];

    public int[] Shared { get; private set; } = new int[kvHeads];

    /// <summary>Blocks that the layer's heads own themselves.</summary>
    public IEnumerable<int> OwnBlocks => Rows.SelectMany((row, head) => row.Skip(Shared[head]));

    public bool UsesPrefix => Shared.Any(count => count > 0);

    /// <summary>Replaces everything.</summary>
    public void Become(List<int>[] rows, int[] lengths, int[] shared) => (Rows, Lengths, Shared) = (rows, lengths, shared);
}
