namespace Compactor.Native.Paging;

/// <summary>Block tables of a batch of sequences, in the forms attention kernels take.</summary>
public static class CacheExport
{
    /// <summary>Padded tables of one layer; blocks reserved beyond a head's tokens are left out.</summary>
    /// <param name="sequences">The batch, all of one cache.</param>
    /// <param name="layer">Layer.</param>
    /// <returns><c>[B·Hkv, RowStride]</c> block ids (-1 beyond a head's blocks), the row stride, and <c>[B·Hkv]</c> lengths.</returns>
    public static (int[] Tables, int RowStride, int[] Lengths) Padded(IReadOnlyList<CacheSequence> sequences, int layer)
    {
        var rows = Rows(sequences, layer);
        int stride = rows.Select(row => row.Blocks.Length).DefaultIfEmpty(0).Max();
        var tables = new int[rows.Count * stride];
        Array.Fill(tables, -1);
        for (int i = 0; i < rows.Count; i++)
            rows[i].Blocks.CopyTo(tables, i * stride);
        return (tables, stride, [.. rows.Select(row => row.Length)]);
    }

    /// <summary>
    /// FlashInfer's page table of one layer, for a cache of one KV head and batch B·Hkv: <c>indptr [B·Hkv + 1]</c>, <c>indices</c>, and the number of tokens in each
    /// row's last page, 1 to the block size (0 for an empty row).
    /// </summary>
    /// <param name="sequences">The batch, all of one cache.</param>
    /// <param name="layer">Layer.</param>
    public static (int[] Indptr, int[] Indices, int[] LastPageLengths) FlashInfer(IReadOnlyList<CacheSequence> sequences, int layer)
    {
        var rows = Rows(sequences, layer);
        var indptr = new int[rows.Count + 1];
        for (int i = 0; i < rows.Count; i++)
            indptr[i + 1] = indptr[i] + rows[i].Blocks.Length;
        return (indptr, [.. rows.SelectMany(row => row.Blocks)], [.. rows.Select(row => row.Length == 0 ? 0 : (row.Length - 1) % row.BlockSize + 1)]);
    }

    private static List<(int[] Blocks, int Length, int BlockSize)> Rows(IReadOnlyList<CacheSequence> sequences, int layer)
    {
        var rows = new List<(int[], int, int)>();
        foreach (var sequence in sequences)
        {
            if (sequence.Cache != sequences[0].Cache)
                throw CompactorException.Argument("The sequences are of different caches; export each cache by itself.");
            for (int head = 0; head < sequence.Cache.Options.KvHeads; head++)
            {
                int length = sequence.Lengths(layer)[head];
                rows.Add((sequence.Blocks(layer, head)[..sequence.BlocksFor(length)].ToArray(), length, sequence.Cache.Options.BlockSize));
            }
        }
        return rows;
    }
}
