using Compactor.Native.Paging;

namespace Compactor.Native.Tests.Support;

/// <summary>Decode attention over what sequences hold.</summary>
internal static class PagedDecode
{
    public static float[] Of(PagedCache cache, IReadOnlyList<CacheSequence> sequences, TensorView query, int layer)
    {
        var backend = cache.Backend;
        var (tables, stride, lengths) = CacheExport.Padded(sequences, layer);
        using var tableMemory = backend.Allocate<int>(tables.Length);
        using var lengthMemory = backend.Allocate<int>(lengths.Length);
        using var output = backend.Allocate<float>(query.Tokens * query.Heads * query.Dim);
        backend.Upload<int>(tables, tableMemory.View);
        backend.Upload<int>(lengths, lengthMemory.View);
        backend.DecodeAttention(cache.View, query, cache.Options.KvHeads, new PagedTables(tableMemory.View, stride, lengthMemory.View), new AttentionOptions(), output.View);
        return Arrays.Copy(output);
    }
}
