using Compactor.Native.Paging;
using Compactor.Native.Tests.Support;
using FsCheck;
using FsCheck.Fluent;
using Xunit;

namespace Compactor.Native.Tests.Compression;

/// <summary>Several new query tokens a sequence over a ragged prefix; sinks and windows, for one token too.</summary>
public class ExtendAttentionTests
{
    public static TheoryData<string> All => Backends.All;

    [Theory]
    [MemberData(nameof(All))]
    public void New_tokens_attend_to_the_prefix_and_causally_to_each_other(string backendName)
    {
        var property = Prop.ForAll(
            (from seed in Gen.Choose(0, 1 << 20)
             from dim in Gen.Elements(16, 64, 80, 128, 256)
             from shared in Gen.Choose(1, 16)
             from kvHeads in Gen.Choose(1, 3)
             from sequences in Gen.Choose(0, 3)
             from blockSize in Gen.Elements(1, 16, 128)
             from longest in Gen.Elements(0, 1, 40, 300)
             from most in Gen.Elements(1, 3, 40)
             from type in Gen.Elements(Arrays.FloatTypes)
             from softCap in Gen.Elements(new double?[] { null, 5 })
             from sinks in Gen.Elements(true, false)
             from window in Gen.Elements(0, 1, 7, 100, int.MaxValue)
             select (seed, dim, shared, kvHeads, sequences, blockSize, longest, most, type, softCap, sinks, window)).ToArbitrary(),
            c =>
            {
                var random = new Random(c.seed);
                int[] tokens = [.. Enumerable.Range(0, c.sequences).Select(_ => random.Next(c.most + 1))];
                int[] lengths = [.. Enumerable.Range(0, c.sequences * c.kvHeads).Select(row => tokens[row / c.kvHeads] + random.Next(c.longest + 1))];
                var batch = new PagedBatch(c.seed, c.type, c.dim, c.kvHeads, c.shared, c.blockSize, tokens, lengths);
                var options = new AttentionOptions { SoftCap = c.softCap };
                using var backend = Backends.Create(backendName);
                batch.AssertReference(batch.Attend(backend, options, c.sinks, c.window), options, c.sinks, c.window);
            });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(backendName == "reference" ? 10 : 40).WithReplay(20250708, 11), property);
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Decoding_knows_sinks_and_windows_and_is_one_token_of_extending(string backendName)
    {
        foreach (var (type, dim, group) in ((ElementType, int, int)[])[(ElementType.Float32, 64, 1), (ElementType.Float16, 80, 16), (ElementType.BFloat16, 128, 5)])
            foreach (var (sinks, window) in ((bool, int)[])[(false, 0), (true, 0), (false, 30), (true, 2500)])
            {
                var batch = new PagedBatch(dim + window, type, dim, kvHeads: 2, group, blockSize: 16, tokens: [1, 1], lengths: [2300, 1, 33, 700]);
                var options = new AttentionOptions { Scale = 0.3 };
                using var backend = Backends.Create(backendName);
                var decoded = batch.Attend(backend, options, sinks, window, extend: false);
                batch.AssertReference(decoded, options, sinks, window);
                var extended = batch.Attend(backend, options, sinks, window);
                Assert.Equal(decoded.Output, extended.Output);
                Assert.Equal(decoded.LogSumExp, extended.LogSumExp);
            }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void A_head_that_holds_nothing_gives_zeros_and_its_sink(string backendName)
    {
        var batch = new PagedBatch(5, ElementType.Float32, 32, kvHeads: 2, group: 3, blockSize: 16, tokens: [1], lengths: [0, 20]);
        using var backend = Backends.Create(backendName);
        var (output, sums) = batch.Attend(backend, new AttentionOptions(), sinks: true, extend: false);
        Assert.All(output[..(3 * 32)], x => Assert.Equal(0, x));
        Assert.Equal([.. Enumerable.Range(0, 3).Select(head => BitConverter.ToSingle(batch.Sinks, 4 * head))], sums[..3], (a, b) => Math.Abs(a - b) < 1e-6);
        Assert.All(batch.Attend(backend, new AttentionOptions(), extend: false).LogSumExp[..3], x => Assert.Equal(float.NegativeInfinity, x));
    }

    /// <summary>A prefill in chunks, each over what the earlier ones stored, is the attention of the whole prompt at once.</summary>
    [Theory]
    [MemberData(nameof(All))]
    public void Chunks_of_a_prefill_are_full_causal_attention(string backendName)
    {
        const int Tokens = 150, Dim = 64, KvHeads = 2, Group = 4, Row = KvHeads * Group * Dim;
        using var backend = Backends.Create(backendName);
        var layer = TestLayer.Random(9, [Tokens], KvHeads * Group, KvHeads, Dim);
        float[] whole = Prefill(Tokens), chunked = Prefill(37);
        Assert.InRange(Arrays.RelativeError(chunked, whole), 0, 1e-6);
        for (int t = 0; t < Tokens; t += 49)
            for (int head = 0; head < KvHeads * Group; head++)
            {
                double[,] keys = new double[t + 1, Dim], values = new double[t + 1, Dim];
                for (int i = 0; i <= t; i++)
                    for (int d = 0; d < Dim; d++)
                        (keys[i, d], values[i, d]) = (layer.KeyValues[(i * KvHeads + head / Group) * Dim + d], layer.ValueValues[(i * KvHeads + head / Group) * Dim + d]);
                int at = t * Row + head * Dim;
                var (expected, _) = Reference.ReferenceDecodeAttention.Attend([.. layer.QueryValues[at..(at + Dim)].Select(x => (double)x)], keys, values, new AttentionOptions());
                Assert.InRange(Arrays.RelativeError(whole.AsSpan(at, Dim), [.. expected.Select(x => (float)x)]), 0, 1e-5);
            }
        GC.KeepAlive(layer);

        float[] Prefill(int chunk)
        {
            using var cache = new PagedCache(backend, new PagedCacheOptions { Layers = 1, KvHeads = KvHeads, HeadDim = Dim, ElementType = ElementType.Float32, Blocks = 40, BlockSize = 16 });
            using var sequence = cache.CreateSequence();
            using var output = backend.Allocate<float>(Tokens * Row);
            for (int first = 0; first < Tokens; first += chunk)
            {
                int count = Math.Min(chunk, Tokens - first);
                sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, first, count, first);
                var (tables, stride, lengths) = CacheExport.Padded([sequence], 0);
                using var tableMemory = backend.Allocate<int>(tables.Length);
                using var lengthMemory = backend.Allocate<int>(lengths.Length);
                backend.Upload<int>(tables, tableMemory.View);
                backend.Upload<int>(lengths, lengthMemory.View);
                backend.ExtendAttention(new ExtendPlan([0, count], KvHeads * Group, KvHeads), cache.View, Part(layer.Inputs.Query!.Value, first, count),
                    new PagedTables(tableMemory.View, stride, lengthMemory.View), new AttentionOptions(), output.View.Slice((long)first * Row, (long)count * Row));
            }
            return Arrays.Copy(output);
        }

        static TensorView Part(TensorView view, int first, int count) => view with { Address = view.Address + (nint)(first * view.TokenStride * sizeof(float)), Tokens = count };
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Threads_change_no_bit(string backendName)
    {
        var batch = new PagedBatch(8, ElementType.BFloat16, 64, kvHeads: 2, group: 4, blockSize: 128, tokens: [70, 2], lengths: [1500, 90, 2100, 2]);
        using KvBackend one = Backends.Create(backendName, threads: 1), three = Backends.Create(backendName, threads: 3);
        Assert.Equal(batch.Attend(one, new AttentionOptions()).Output, batch.Attend(three, new AttentionOptions()).Output);
    }

    [Fact]
    public void Bad_values_are_named()
    {
        Assert.Contains("query_starts[2] is 1", Assert.Throws<CompactorException>(() => new ExtendPlan([0, 2, 1], 4, 2)).Message);
        Assert.Contains("query_starts start with 1", Assert.Throws<CompactorException>(() => new ExtendPlan([1, 2], 4, 2)).Message);
        Assert.Contains("17 query heads share", Assert.Throws<CompactorException>(() => new ExtendPlan([0, 1], 17, 1)).Message);
        var batch = new PagedBatch(1, ElementType.Float32, 32, kvHeads: 2, group: 2, blockSize: 16, tokens: [3], lengths: [2, 9]);
        Refused("Row 0 of the lengths is 2; its sequence brings 3 new tokens", batch, new AttentionOptions());
        batch = new PagedBatch(1, ElementType.Float32, 32, kvHeads: 2, group: 2, blockSize: 16, tokens: [3], lengths: [5, 9]);
        Refused("Window is -1 tokens", batch, new AttentionOptions(), window: -1);
        BitConverter.TryWriteBytes(batch.Sinks.AsSpan(4), float.NaN);
        Refused("Sinks[1] is NaN", batch, new AttentionOptions(), sinks: true);
        (batch.QueryPositions[1], batch.QueryPositions[2]) = (40, 39);
        Refused("QueryPositions[2] is 39 after 40", batch, new AttentionOptions(), window: 5);

        using var cpu = Backends.Cpu(1);
        using var three = cpu.Allocate<float>(3);
        using var memory = cpu.Allocate<float>(4 * 3 * 32);
        using var tables = cpu.Allocate<int>(2);
        var cache = PagedView.HeadBlocks(memory.View.Address, memory.View.Address, ElementType.Float32, 1, 32);
        var query = TensorView.Packed(memory.View.Address, ElementType.Float32, 3, 4, 32);
        Call("Sinks hold 3 logits; give one a query head, 4", query, new AttentionOptions { Sinks = three.View });
        Call("the window has 2 QueryPositions for 3 query tokens", query, new AttentionOptions { Window = new SlidingWindow(4, tables.View, tables.View) });
        Call("the plan is for 3 tokens of 4 heads", query with { Tokens = 2 }, new AttentionOptions());
        Call("sequence stride of 128", query with { SequenceStride = 128 }, new AttentionOptions());
        Call("Head dimension 40", query with { Dim = 40 }, new AttentionOptions(), dim: 40);

        void Call(string part, TensorView queries, AttentionOptions options, int dim = 32) => Assert.Contains(part,
            Assert.Throws<CompactorException>(() => cpu.ExtendAttention(new ExtendPlan([0, 3], 4, 2), cache with { Dim = dim }, queries, new PagedTables(tables.View, 1, tables.View), options, memory.View)).Message,
            StringComparison.OrdinalIgnoreCase);

        static void Refused(string part, PagedBatch batch, AttentionOptions options, bool sinks = false, int window = 0)
        {
            using var backend = Backends.Cpu(1);
            Assert.Contains(part, Assert.Throws<CompactorException>(() => batch.Attend(backend, options, sinks, window)).Message);
        }
    }
}
