using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;

namespace Compactor.Bench.Peers;

/// <summary>
/// Decode attention of a batch over paged survivors, float32, Hq 32, Hkv 8, D 128; peers have the same survivors as a dense cache. Blocks are shuffled, as they are after some compactions.
/// </summary>
internal static class DecodeSubject
{
    public const int BlockSize = 128;

    private const int QueryHeads = 32, KvHeads = 8, Dim = 128;

    public static unsafe Subject Make(CpuBackend backend, int tokens, int sequences)
    {
        var dense = new BenchLayer(backend, sequences * tokens, queryHeads: KvHeads, kvHeads: KvHeads);
        var queries = new BenchLayer(backend, sequences, queryHeads: QueryHeads, kvHeads: KvHeads);
        int rows = sequences * KvHeads, perRow = tokens / BlockSize;
        long elements = (long)rows * tokens * Dim;
        var keys = backend.Allocate<float>(elements);
        var values = backend.Allocate<float>(elements);
        var tables = backend.Allocate<int>(rows * perRow);
        var lengths = backend.Allocate<int>(rows);
        var output = backend.Allocate<float>(sequences * QueryHeads * Dim);

        int[] blocks = [.. Enumerable.Range(0, rows * perRow)];
        new Random(1).Shuffle(blocks);
        blocks.CopyTo(tables.View.AsSpan());
        lengths.View.AsSpan().Fill(tokens);
        long blockElements = (long)BlockSize * Dim;
        for (int i = 0; i < blocks.Length; i++)
        {
            Copy(dense.Inputs.Key.Address, keys.View.Address, i, blocks[i]);
            Copy(dense.Inputs.Value.Address, values.View.Address, i, blocks[i]);
        }
        var cache = PagedView.HeadBlocks(keys.View.Address, values.View.Address, ElementType.Float32, BlockSize, Dim);
        var query = queries.Inputs.Query!.Value;
        var dimensions = new JsonObject
        {
            ["stage"] = "decode",
            ["sequences"] = sequences,
            ["tokens"] = tokens,
            ["query_heads"] = QueryHeads,
            ["kv_heads"] = KvHeads,
            ["head_dim"] = Dim,
            ["block_size"] = BlockSize,
        };
        return new($"decode attention, {sequences} sequences of {tokens} kept tokens, float32, blocks of {BlockSize}", dimensions,
            [PeerInput.Of("query", query), new PeerInput("key", dense.Inputs.Key.Address, elements), new PeerInput("value", dense.Inputs.Value.Address, elements)],
            () => backend.DecodeAttention(cache, query, KvHeads, new PagedTables(tables.View, perRow, lengths.View), new AttentionOptions(), output.View),
            () => output.View.AsSpan().ToArray(), 1e-5, "pytorch_decode.py", HasOnnxGraph: true, dense, queries, keys, values, tables, lengths, output);

        void Copy(nint source, nint target, int from, int to) =>
            new ReadOnlySpan<float>((float*)source + from * blockElements, (int)blockElements).CopyTo(new Span<float>((float*)target + to * blockElements, (int)blockElements));
    }
}
