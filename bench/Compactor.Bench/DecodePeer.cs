using System.Diagnostics;
using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;

namespace Compactor.Bench;

/// <summary>
/// Decode attention of a batch over paged survivors, float32, Hq 32, Hkv 8, D 128, against PyTorch over the same survivors as a dense cache.
/// Blocks are shuffled, as they are after some compactions.
/// </summary>
internal static class DecodePeer
{
    private const int QueryHeads = 32, KvHeads = 8, Dim = 128, BlockSize = 128;

    public static unsafe int Run(int tokens, int sequences, int pairs, int threads, string python, string? json)
    {
        if (tokens < BlockSize || tokens % BlockSize != 0)
        {
            Console.Error.WriteLine($"--tokens is {tokens}; use a multiple of the block size, {BlockSize}.");
            return 1;
        }
        if (!PyTorchPeer.IsInstalled(python))
            return 1;
        using var backend = new CpuBackend(threads);
        using var dense = new BenchLayer(backend, sequences * tokens, queryHeads: KvHeads, kvHeads: KvHeads);
        using var queries = new BenchLayer(backend, sequences, queryHeads: QueryHeads, kvHeads: KvHeads);
        int rows = sequences * KvHeads, perRow = tokens / BlockSize;
        long elements = (long)rows * tokens * Dim;
        using var keys = backend.Allocate<float>(elements);
        using var values = backend.Allocate<float>(elements);
        using var tables = backend.Allocate<int>(rows * perRow);
        using var lengths = backend.Allocate<int>(rows);
        using var output = backend.Allocate<float>(sequences * QueryHeads * Dim);

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
            ["sequences"] = sequences,
            ["tokens"] = tokens,
            ["query_heads"] = QueryHeads,
            ["kv_heads"] = KvHeads,
            ["head_dim"] = Dim,
            ["block_size"] = BlockSize,
        };
        using var peer = new PyTorchPeer(python, "pytorch_decode.py", dimensions,
            ("query", query.Address, (long)sequences * QueryHeads * Dim), ("key", dense.Inputs.Key.Address, elements), ("value", dense.Inputs.Value.Address, elements));
        return PeerComparison.Execute(new PeerComparison.Subject($"decode attention, {sequences} sequences of {tokens} kept tokens, float32, blocks of {BlockSize}", dimensions, Once, 1e-5),
            backend, peer, pairs, json);

        void Copy(nint source, nint target, int from, int to) =>
            new ReadOnlySpan<float>((float*)source + from * blockElements, (int)blockElements).CopyTo(new Span<float>((float*)target + to * blockElements, (int)blockElements));

        (double, float[]) Once()
        {
            long start = Stopwatch.GetTimestamp();
            backend.DecodeAttention(cache, query, KvHeads, new PagedTables(tables.View, perRow, lengths.View), new AttentionOptions(), output.View);
            return (Stopwatch.GetElapsedTime(start).TotalSeconds, output.View.AsSpan().ToArray());
        }
    }
}
