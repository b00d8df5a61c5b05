using Compactor.Native.Compression;

namespace Compactor.Native.Paging;

/// <summary>
/// How many new query tokens each sequence of a batch brings. Made once for a batch and used for all of its layers: what a backend makes of it is kept as long as it lives.
/// </summary>
public sealed class ExtendPlan
{
    private readonly int[] _queryStarts;

    /// <summary>Makes a plan.</summary>
    /// <param name="queryStarts"><c>[B+1]</c> where each sequence's tokens start in the packed queries: 0 first, ascending. A sequence may bring none.</param>
    /// <param name="queryHeads">Query heads Hq.</param>
    /// <param name="kvHeads">KV heads Hkv, which divide Hq; at most 16 query heads share one.</param>
    /// <exception cref="CompactorException">The starts do not ascend from 0, or the heads do not fit each other.</exception>
    public ExtendPlan(IReadOnlyList<int> queryStarts, int queryHeads, int kvHeads)
    {
        if (queryStarts.Count == 0 || queryStarts[0] != 0)
            throw CompactorException.Argument($"query_starts {(queryStarts.Count == 0 ? "are empty" : $"start with {queryStarts[0]}")}; give 0, then where each next sequence starts, then the number of tokens.");
        for (int b = 1; b < queryStarts.Count; b++)
            if (queryStarts[b] < queryStarts[b - 1])
                throw CompactorException.Argument($"query_starts[{b}] is {queryStarts[b]}, below query_starts[{b - 1}] = {queryStarts[b - 1]}; entries must ascend.");
        if (queryHeads < 1)
            throw CompactorException.Argument($"There are {queryHeads} query heads; use 1 or more.");
        _queryStarts = [.. queryStarts];
        _ = new LayerShape(_queryStarts, queryHeads, kvHeads, LayerShape.MinHeadDim, ElementType.Float32);
        (QueryHeads, KvHeads) = (queryHeads, kvHeads);
    }

    /// <summary>Sequences B.</summary>
    public int Sequences => _queryStarts.Length - 1;

    /// <summary>Query tokens Nq of all sequences.</summary>
    public int QueryTokens => _queryStarts[^1];

    /// <summary>Query heads Hq.</summary>
    public int QueryHeads { get; }

    /// <summary>KV heads Hkv.</summary>
    public int KvHeads { get; }

    /// <summary><c>[B+1]</c>.</summary>
    public ReadOnlySpan<int> QueryStarts => _queryStarts;
}
