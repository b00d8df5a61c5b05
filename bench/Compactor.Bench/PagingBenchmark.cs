using System.Diagnostics;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;

namespace Compactor.Bench;

/// <summary>Bookkeeping of the paged cache: blocks taken and given back a second on one core, and a layer's tables of a long sequence.</summary>
internal static class PagingBenchmark
{
    /// <summary>Untimed repeats: the JIT replaces its first, quick code only after tens of calls, and an array's first growth is of another kind.</summary>
    private const int Warmup = 50;

    private const int TableBlocks = 2_000_000, Operations = 1_000_000, Request = 1000, Tokens = 131_072, KvHeads = 8, Dim = 16;

    public static int Run(int repeats, string? json)
    {
        var pool = new BlockPool(TableBlocks);
        var ids = new int[Operations];
        var rates = Repeat(repeats, () =>
        {
            long start = Stopwatch.GetTimestamp();
            for (int at = 0; at < ids.Length; at += Request)
                pool.TryTake(ids.AsSpan(at, Request));
            pool.Give(ids);
            return ids.Length / Stopwatch.GetElapsedTime(start).TotalSeconds / 1e6;
        });

        using var backend = new CpuBackend(1);
        var options = new PagedCacheOptions { Layers = 1, KvHeads = KvHeads, HeadDim = Dim, ElementType = ElementType.Opaque8, Blocks = 20_000 };
        using var cache = new PagedCache(backend, options);
        using var rows = backend.Allocate<byte>((long)Tokens * KvHeads * Dim);
        rows.View.AsSpan().Clear();
        var view = TensorView.Packed(rows.View.Address, ElementType.Opaque8, Tokens, KvHeads, Dim);
        var (export, free) = (new List<double>(), new List<double>());
        int blocks = 0;
        var grow = Repeat(repeats, () =>
        {
            var sequence = cache.CreateSequence();
            double grown = Milliseconds(() => sequence.Reserve(0, Tokens));
            sequence.Store(0, view, view, 0, Tokens, 0);
            export.Add(Milliseconds(() => blocks = CacheExport.FlashInfer([sequence], 0).Indices.Length));
            free.Add(Milliseconds(sequence.Dispose));
            return grown;
        });
        if (blocks != cache.BlocksFor(Tokens))
            throw new InvalidOperationException($"{blocks} blocks were exported; the sequence has {cache.BlocksFor(Tokens)}.");
        (export, free) = (export[Warmup..], free[Warmup..]);

        Console.WriteLine($"a million blocks, in requests of {Request}, of a table of 2 M: {BenchResult.Median(rates):F0} M blocks/s taken and given back on one core (median of {repeats}, smallest {rates.Min():F0})");
        Console.WriteLine($"a layer's tables of 128K tokens, {KvHeads} heads, {blocks} blocks: grown in {BenchResult.Median(grow):F3} ms (largest {grow.Max():F3}), exported in {BenchResult.Median(export):F3} ms, " +
            $"given back in {BenchResult.Median(free):F3} ms (medians of {repeats})");
        if (json is not null)
        {
            var result = BenchResult.New("bookkeeping of the paged cache, one core");
            result["repeats"] = repeats;
            result["warmup_repeats"] = Warmup;
            result["table_blocks"] = TableBlocks;
            result["block_operations"] = 2 * Operations;
            result["blocks_a_request"] = Request;
            result["sequence_tokens"] = Tokens;
            result["kv_heads"] = KvHeads;
            result["sequence_blocks"] = blocks;
            result["million_blocks_per_second"] = BenchResult.Values(rates);
            result["grow_milliseconds"] = BenchResult.Values(grow);
            result["export_milliseconds"] = BenchResult.Values(export);
            result["free_milliseconds"] = BenchResult.Values(free);
            BenchResult.Save(result, json);
        }
        return 0;
    }

    private static List<double> Repeat(int repeats, Func<double> measure) => Enumerable.Range(0, repeats + Warmup).Select(_ => measure()).ToList()[Warmup..];

    private static double Milliseconds(Action action)
    {
        long start = Stopwatch.GetTimestamp();
        action();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }
}
