using System.Diagnostics;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;

namespace Compactor.Bench;

/// <summary>Bookkeeping of the paged cache: blocks taken and given back a second on one core, and a layer's tables of a long sequence.</summary>
internal static class PagingBenchmark
{
    public static int Run(int repeats)
    {
        var pool = new BlockPool(2_000_000);
        var ids = new int[1_000_000];
        var rates = new List<double>();
        for (int i = 0; i < repeats + 2; i++)
        {
            long start = Stopwatch.GetTimestamp();
            for (int at = 0; at < ids.Length; at += 1000)
                pool.TryTake(ids.AsSpan(at, 1000));
            pool.Give(ids);
            rates.Add(ids.Length / Stopwatch.GetElapsedTime(start).TotalSeconds / 1e6);
        }
        Console.WriteLine($"a million blocks, in requests of 1000, of a table of 2 M: {Median(rates[2..]):F0} M blocks/s taken and given back on one core (median of {repeats})");

        // 128K tokens of 8 heads in blocks of 128: 8,192 blocks.
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, new PagedCacheOptions { Layers = 1, KvHeads = 8, HeadDim = 16, ElementType = ElementType.Opaque8, Blocks = 20_000 });
        const int tokens = 131_072;
        var (grow, export, free) = (new List<double>(), new List<double>(), new List<double>());
        for (int i = 0; i < repeats + 2; i++)
        {
            var sequence = cache.CreateSequence();
            long start = Stopwatch.GetTimestamp();
            sequence.Reserve(0, tokens);
            grow.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
            start = Stopwatch.GetTimestamp();
            CacheExport.Padded([sequence], 0);
            export.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
            start = Stopwatch.GetTimestamp();
            sequence.Dispose();
            free.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
        }
        Console.WriteLine($"a layer's tables of 128K tokens, 8 heads, 8,192 blocks: grown in {Median(grow[2..]):F3} ms, exported in {Median(export[2..]):F3} ms, given back in {Median(free[2..]):F3} ms (medians of {repeats})");
        return 0;
    }

    private static double Median(List<double> values) => values.Order().ElementAt(values.Count / 2);
}
