using Compactor.Native.Compression;
using Compactor.Native.Io;
using Compactor.Native.Reference;

namespace Compactor.Bench;

/// <summary>How a selection spreads survivors over heads: what the Paper preset keeps of every (layer, head) of the demo's cache, 4 layers of 2 KV heads that read 645 tokens.</summary>
internal static class KeptShares
{
    /// <summary>Tokens kept of each (layer, head) of the demo, beyond the protected ones.</summary>
    /// <param name="retention">Share of the tokens to keep, below 1.</param>
    public static int[] OfDemo(double retention)
    {
        using var dump = KvDump.Open(Path.Combine(AppContext.BaseDirectory, "Demo", "mixed.safetensors"));
        using var backend = new ReferenceBackend();
        var kept = new List<int>();
        foreach (var layer in dump.Layers)
        {
            var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(retention));
            using var selection = LayerCompressor.Select(backend, plan, layer.Inputs);
            var offsets = selection.KeptOffsets.View.AsSpan();
            for (int head = 0; head < layer.Shape.KvHeads; head++)
                kept.Add(offsets[head + 1] - offsets[head] - Protected(plan));
        }
        return [.. kept];
    }

    /// <summary>Spreads what a plan of one sequence keeps over its heads in proportion to the demo's.</summary>
    /// <param name="plan">The plan.</param>
    /// <param name="demo">From <see cref="OfDemo"/>; head h takes entry h, beginning anew after the last.</param>
    /// <returns><c>[Hkv + 1]</c> where each head's survivors start.</returns>
    public static int[] Offsets(LayerPlan plan, int[] demo)
    {
        int heads = plan.Shape.KvHeads, tokens = plan.Shape.Tokens, always = Protected(plan);
        long free = plan.KeptPairs - (long)heads * always, all = Enumerable.Range(0, heads).Sum(head => (long)demo[head % demo.Length]), before = 0;
        var offsets = new int[heads + 1];
        for (int head = 0; head < heads; head++)
        {
            before += demo[head % demo.Length];
            offsets[head + 1] = checked((int)(free * before / all) + (head + 1) * always);
            if (offsets[head + 1] - offsets[head] > tokens)
                throw new InvalidOperationException($"Head {head} would keep {offsets[head + 1] - offsets[head]} of {tokens} tokens.");
        }
        return offsets;
    }

    private static int Protected(LayerPlan plan) => Math.Min(plan.Shape.Tokens, plan.Options.ProtectFirst + plan.Options.ProtectLast);
}
