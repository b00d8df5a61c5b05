using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Host;

/// <summary>
/// Attention of new tokens to what the paged cache holds of their sequences, by the library's decode attention, merged into their attention to each other by the log-sum-exp of
/// both. All new tokens see the whole prefix, so several of them ride in one row as further query heads of each KV head, and share the reading of its keys and values.
/// </summary>
internal sealed unsafe class PrefixAttention : IDisposable
{
    private readonly ModelConfig _config;
    private readonly PagedCache _cache;
    private readonly int _tokensPerRow;
    private readonly CacheSequence[] _rowSequences;
    private readonly (int FirstToken, int Tokens)[] _rows;
    private readonly BackendBuffer<float> _query, _output, _logSumExp;

    /// <summary>Deals the tokens of a batch to rows.</summary>
    public PrefixAttention(ModelConfig config, TokenBatch batch)
    {
        (_config, _cache) = (config, batch.Prefixes![0].Cache);
        // Tokens of neighbours that continue the same prefix, as questions about one context do, share rows.
        var runs = new List<(int First, int End, CacheSequence Sequence)>();
        for (int b = 0; b < batch.Sequences; b++)
            if (runs.Count > 0 && runs[^1].Sequence == batch.Prefixes[b])
                runs[^1] = runs[^1] with { End = batch.CuSeqlens[b + 1] };
            else
                runs.Add((batch.CuSeqlens[b], batch.CuSeqlens[b + 1], batch.Prefixes[b]));
        _tokensPerRow = Math.Min(runs.Max(run => run.End - run.First), Math.Max(1, LayerShape.MaxGroup / (config.QueryHeads / config.KvHeads)));
        var rows = new List<(int, int)>();
        var sequences = new List<CacheSequence>();
        foreach (var run in runs)
            for (int first = run.First; first < run.End; first += _tokensPerRow)
            {
                rows.Add((first, Math.Min(_tokensPerRow, run.End - first)));
                sequences.Add(run.Sequence);
            }
        (_rows, _rowSequences) = ([.. rows], [.. sequences]);
        long heads = (long)_rows.Length * _tokensPerRow * config.QueryHeads;
        _query = _cache.Backend.Allocate<float>(heads * config.HeadDim);
        _output = _cache.Backend.Allocate<float>(heads * config.HeadDim);
        _logSumExp = _cache.Backend.Allocate<float>(heads);
        _query.View.AsSpan().Clear();
    }

    /// <summary>Merges attention to a layer's prefix into attention to new tokens.</summary>
    /// <param name="layer">Layer.</param>
    /// <param name="query">Queries after RoPE, <c>[N, Hq, D]</c>.</param>
    /// <param name="output"><c>[N, Hq, D]</c>, of new tokens; receives that of both.</param>
    /// <param name="logSumExp"><c>[N, Hq]</c>, of new tokens.</param>
    public void Merge(int layer, float* query, float* output, float* logSumExp)
    {
        int dim = _config.HeadDim, rowHeads = _tokensPerRow * _config.QueryHeads;
        float* rowQuery = (float*)_query.View.Address, prefix = (float*)_output.View.Address, prefixLse = (float*)_logSumExp.View.Address;
        for (int row = 0; row < _rows.Length; row++)
            for (int t = 0; t < _rows[row].Tokens; t++)
                for (int head = 0; head < _config.QueryHeads; head++)
                    Row(query, TokenHead(row, t, head)).CopyTo(Row(rowQuery, (long)row * rowHeads + RowHead(t, head)));

        var backend = _cache.Backend;
        var (tables, stride, lengths) = CacheExport.Padded(_rowSequences, layer);
        using var tableMemory = backend.Allocate<int>(tables.Length);
        using var lengthMemory = backend.Allocate<int>(lengths.Length);
        backend.Upload<int>(tables, tableMemory.View);
        backend.Upload<int>(lengths, lengthMemory.View);
        backend.DecodeAttention(_cache.View, TensorView.Packed(_query.View.Address, ElementType.Float32, _rows.Length, rowHeads, dim), _config.KvHeads,
            new PagedTables(tableMemory.View, stride, lengthMemory.View), new AttentionOptions(), _output.View, _logSumExp.View);
        using (var computed = backend.Record())
            computed.Wait();

        for (int row = 0; row < _rows.Length; row++)
            for (int t = 0; t < _rows[row].Tokens; t++)
                for (int head = 0; head < _config.QueryHeads; head++)
                {
                    long to = TokenHead(row, t, head), from = (long)row * rowHeads + RowHead(t, head);
                    if (float.IsNegativeInfinity(prefixLse[from]))
                        continue;
                    float share = 1 / (1 + MathF.Exp(prefixLse[from] - logSumExp[to]));
                    var own = Row(output, to);
                    var held = Row(prefix, from);
                    for (int d = 0; d < dim; d++)
                        own[d] = share * own[d] + (1 - share) * held[d];
                }

        Span<float> Row(float* tensor, long index) => new(tensor + index * dim, dim);
    }

    public void Dispose()
    {
        _query.Dispose();
        _output.Dispose();
        _logSumExp.Dispose();
    }

    private long TokenHead(int row, int token, int head) => (long)(_rows[row].FirstToken + token) * _config.QueryHeads + head;

    /// <summary>Query heads of a row are ordered by KV head, then token, then query head of the group.</summary>
    private int RowHead(int token, int head)
    {
        int group = _config.QueryHeads / _config.KvHeads;
        return (head / group * _tokensPerRow + token) * group + head % group;
    }
}
