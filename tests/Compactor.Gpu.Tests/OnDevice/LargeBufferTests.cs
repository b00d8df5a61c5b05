using System.Runtime.InteropServices;
using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Paging;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.OnDevice;

/// <summary>
/// Tensors and pools past 2^31 bytes. Content repeats, so that the right results are known without computing as much: what a kernel makes of the first period it must make,
/// bit by bit, of the last.
/// </summary>
[Collection(WholeDevice.Name)]
public unsafe class LargeBufferTests
{
    private const int Period = 512, HeadDim = 128;

    /// <summary>Keys of 8 heads: 2.7 GB.</summary>
    private const int KeyTokens = 1_310_720;

    private const long LargestEmulated = 1 << 14;

    /// <summary>Queries of 32 heads: 2.7 GB.</summary>
    private const int QueryTokens = 327_680;

    private static readonly CompressionOptions s_options = CompressionPresets.CompactorVllm with { LeverageChunk = Period, AttentionChunk = 256 };

    [Theory]
    [InlineData(4 * Period, 2)]
    [InlineData(KeyTokens, 8)]
    public void Leverage_of_every_period_is_that_of_the_first(int tokens, int kvHeads)
    {
        using var device = Open(tokens, kvHeads);
        var plan = new LayerPlan(new LayerShape([0, tokens], kvHeads, kvHeads, HeadDim, ElementType.BFloat16), s_options, Budget.Retention(0.25));
        var leverage = device.New<float>(plan.Shape.Pairs);
        device.Backend.Leverage(plan, Periodic(device, 1, tokens, kvHeads), null, plan.Sketch, leverage);
        AssertPeriodic(device.Backend.Read(leverage), Period * kvHeads);
    }

    [Theory]
    [InlineData(2 * Period, 4)]
    [InlineData(QueryTokens, 32)]
    public void Attention_scores_of_every_period_are_those_of_the_first(int tokens, int queryHeads)
    {
        using var device = Open(tokens, queryHeads);
        int kvHeads = queryHeads / 4;
        var plan = new LayerPlan(new LayerShape([0, tokens], queryHeads, kvHeads, HeadDim, ElementType.BFloat16), s_options, Budget.Retention(0.25));
        var attention = device.New<float>(plan.Shape.Pairs);
        device.Backend.AttentionScores(plan, Periodic(device, 2, tokens, queryHeads), Periodic(device, 3, tokens, kvHeads), attention);
        AssertPeriodic(device.Backend.Read(attention), Period * kvHeads);
    }

    [Theory]
    [InlineData(4 * Period, 2)]
    [InlineData(KeyTokens, 8)]
    public void Survivors_are_the_rows_their_indices_name(int tokens, int kvHeads)
    {
        using var device = Open(tokens, kvHeads);
        var plan = new LayerPlan(new LayerShape([0, tokens], kvHeads, kvHeads, HeadDim, ElementType.BFloat16), s_options with { SelectionScope = SelectionScope.Sequence }, Budget.Retention(0.1));
        var state = new SplitMix(5);
        float[] scores = new float[plan.Shape.Pairs];
        foreach (ref float score in scores.AsSpan())
            score = state.Next() >> 40;
        BufferView<int> indices = device.New<int>(plan.KeptPairs), offsets = device.New<int>(kvHeads + 1);
        var survivors = device.New<byte>(plan.KeptPairs * HeadDim * 2);
        device.Backend.Select(plan, device.Copy<float>(scores), indices, offsets);
        device.Backend.Compact(plan, Periodic(device, 4, tokens, kvHeads), indices, offsets, survivors);
        int[] kept = device.Backend.Read(indices), starts = device.Backend.Read(offsets);
        byte[] rows = device.Backend.Read(survivors), period = Tile(4, kvHeads);
        for (int head = 0; head < kvHeads; head++)
            for (int i = starts[head]; i < starts[head + 1]; i++)
                Assert.True(rows.AsSpan(i * HeadDim * 2, HeadDim * 2).SequenceEqual(period.AsSpan((kept[i] % Period * kvHeads + head) * HeadDim * 2, HeadDim * 2)), $"survivor {i} is not token {kept[i]} of head {head}");
        Assert.True(kept.Max() > 0.99 * tokens, "nothing of the end was kept");
    }

    [Theory]
    [InlineData(64)]
    [InlineData(81_920)] // blocks of 32 KiB: keys and values of 2.7 GB each
    public void Decode_attention_reads_the_last_blocks_of_a_pool_as_the_first(int blocks)
    {
        const int BlockSize = 128, Used = 10;
        int[] lengths = [BlockSize * 4 + 7, BlockSize * 5];
        using var device = Open(blocks, BlockSize);
        BufferView<byte> keys = device.New<byte>((long)blocks * BlockSize * HeadDim * 2), values = device.New<byte>(keys.Length);
        byte[] rows = Rows(6, Used * BlockSize), query = Rows(7, 8);
        var outputs = new List<float[]>();
        foreach (int first in (int[])[0, blocks - Used])
        {
            var place = (Start: (long)first * BlockSize * HeadDim * 2, Bytes: (long)rows.Length);
            device.Backend.Upload<byte>(rows, keys.Slice(place.Start, place.Bytes));
            device.Backend.Upload<byte>(rows, values.Slice(place.Start, place.Bytes));
            var output = device.New<float>(8 * HeadDim);
            device.Backend.DecodeAttention(PagedView.HeadBlocks(keys.Address, values.Address, ElementType.BFloat16, BlockSize, HeadDim),
                TensorView.Packed(device.Copy<byte>(query).Address, ElementType.BFloat16, 1, 8, HeadDim), 2,
                new PagedTables(device.Copy<int>([.. Enumerable.Range(first, Used)]), Used / 2, device.Copy<int>(lengths)), new AttentionOptions(), output);
            outputs.Add(device.Backend.Read(output));
        }
        Assert.Contains(outputs[0], x => x != 0);
        Assert.Equal(outputs[0], outputs[1]);
    }

    private static Device Open(long rows, int heads)
    {
        if (rows * heads > LargestEmulated)
            Device.RequireGpu("has gigabytes of memory to itself");
        return new Device();
    }

    private static TensorView Periodic(Device device, ulong seed, int tokens, int heads)
    {
        byte[] tile = Tile(seed, heads);
        var memory = device.New<byte>((long)tokens * heads * HeadDim * 2);
        for (long at = 0; at < memory.Length; at += tile.Length)
            device.Backend.Upload<byte>(tile, memory.Slice(at, tile.Length));
        return TensorView.Packed(memory.Address, ElementType.BFloat16, tokens, heads, HeadDim);
    }

    private static byte[] Tile(ulong seed, int heads) => Rows(seed, Period * heads);

    private static byte[] Rows(ulong seed, int rows)
    {
        var state = new SplitMix(seed);
        return Arrays.Encode([.. Enumerable.Range(0, rows * HeadDim).Select(_ => (float)((int)(state.Next() >> 56) - 128) / 256)], ElementType.BFloat16);
    }

    private static void AssertPeriodic(float[] scores, int period)
    {
        Assert.Contains(scores[..period], x => x > 0);
        ReadOnlySpan<int> bits = MemoryMarshal.Cast<float, int>(scores);
        for (int at = period; at < bits.Length; at += period)
            Assert.True(bits.Slice(at, period).SequenceEqual(bits[..period]), $"scores from {at} on are not those of the first period");
    }
}
