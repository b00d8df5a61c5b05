using Compactor.Native.Paging;
using Compactor.Native.Reference;
using Compactor.Native.Tests.Support;
using FsCheck;
using FsCheck.Fluent;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public class DecodeAttentionTests
{
    public static TheoryData<string> All => Backends.All;

    private enum Layout { HeadBlocks, Nhd, Hnd }

    [Theory]
    [MemberData(nameof(All))]
    public void Paged_ragged_attention_equals_dense_attention_over_the_same_rows(string backendName)
    {
        var property = Prop.ForAll(
            (from seed in Gen.Choose(0, 1 << 20)
             from dim in Gen.Elements(16, 64, 80, 128, 256)
             from shared in Gen.Choose(1, 16)
             from kvHeads in Gen.Choose(1, 3)
             from sequences in Gen.Choose(0, 3)
             from blockSize in Gen.Elements(1, 16, 128, 256)
             from longest in Gen.Elements(0, 1, 40, 300, 2500)
             from layout in Gen.Elements(Enum.GetValues<Layout>())
             from type in Gen.Elements(Arrays.FloatTypes)
             from softCap in Gen.Elements(new double?[] { null, 5 })
             select (seed, dim, shared, kvHeads, sequences, blockSize, longest, layout, type, softCap)).ToArbitrary(),
            c =>
            {
                var random = new Random(c.seed);
                int rows = c.sequences * (c.layout == Layout.HeadBlocks ? c.kvHeads : 1), headsPerBlock = c.layout == Layout.HeadBlocks ? 1 : c.kvHeads;
                int[] lengths = [.. Enumerable.Range(0, rows).Select(_ => random.Next(c.longest + 1))];
                int rowStride = lengths.Select(n => (n + c.blockSize - 1) / c.blockSize).DefaultIfEmpty(0).Max();
                int[] blocks = [.. Enumerable.Range(0, rows * rowStride + 1)];
                random.Shuffle(blocks);
                int cacheElements = blocks.Length * c.blockSize * headsPerBlock * c.dim;
                byte[] keys = Arrays.Encode(Draw(random, cacheElements), c.type), values = Arrays.Encode(Draw(random, cacheElements), c.type);
                byte[] query = Arrays.Encode(Draw(random, c.sequences * c.kvHeads * c.shared * c.dim), c.type);
                nint k = Arrays.Address(keys), v = Arrays.Address(values);
                var cache = c.layout switch
                {
                    Layout.HeadBlocks => PagedView.HeadBlocks(k, v, c.type, c.blockSize, c.dim),
                    Layout.Nhd => PagedView.Nhd(k, v, c.type, c.blockSize, c.kvHeads, c.dim),
                    _ => PagedView.Hnd(k, v, c.type, c.blockSize, c.kvHeads, c.dim),
                };
                var queries = TensorView.Packed(Arrays.Address(query), c.type, c.sequences, c.kvHeads * c.shared, c.dim);
                var options = new AttentionOptions { SoftCap = c.softCap };
                var (actual, sums) = Decode(backendName, cache, queries, c.kvHeads, blocks[..(rows * rowStride)], rowStride, lengths, options);

                for (int b = 0; b < c.sequences; b++)
                    for (int head = 0; head < c.kvHeads * c.shared; head++)
                    {
                        int h = head / c.shared, row = c.layout == Layout.HeadBlocks ? b * c.kvHeads + h : b;
                        var dense = Dense(cache, keys, values, blocks, row * rowStride, lengths[row], h);
                        double[] q = [.. Enumerable.Range(0, c.dim).Select(d => Element(query, c.type, (b * c.kvHeads * c.shared + head) * c.dim + d))];
                        var (expected, lse) = ReferenceDecodeAttention.Attend(q, dense.Keys, dense.Values, options);
                        int at = (b * c.kvHeads * c.shared + head) * c.dim;
                        Assert.InRange(Arrays.RelativeError(actual.AsSpan(at, c.dim), [.. expected.Select(x => (float)x)]), 0, 1e-5);
                        Assert.Equal(lse, sums[b * c.kvHeads * c.shared + head], 1e-4);
                    }
                GC.KeepAlive((keys, values, query));
            });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(backendName == "reference" ? 20 : 80).WithReplay(20250708, 11), property);
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Threads_change_no_bit(string backendName)
    {
        const int dim = 64, blockSize = 128, heads = 2, tokens = 5000, stride = 40;
        var random = new Random(3);
        byte[] keys = Arrays.Encode(Draw(random, heads * stride * blockSize * dim), ElementType.Float32), query = Arrays.Encode(Draw(random, 4 * dim), ElementType.Float32);
        var cache = PagedView.HeadBlocks(Arrays.Address(keys), Arrays.Address(keys), ElementType.Float32, blockSize, dim);
        var queries = TensorView.Packed(Arrays.Address(query), ElementType.Float32, 1, 4, dim);
        int[] blocks = [.. Enumerable.Range(0, heads * stride)];
        var one = Decode(backendName, cache, queries, heads, blocks, stride, [tokens, 3], new AttentionOptions(), threads: 1);
        var three = Decode(backendName, cache, queries, heads, blocks, stride, [tokens, 3], new AttentionOptions(), threads: 3);
        Assert.Equal(one.Output, three.Output);
        Assert.Equal(one.LogSumExp, three.LogSumExp);
        GC.KeepAlive((keys, query));
    }

    /// <summary>A block whose logits are all below what float32 holds has no weight, wherever it stands.</summary>
    [Theory]
    [MemberData(nameof(All))]
    public void Logits_of_minus_infinity_weigh_nothing(string backendName)
    {
        const int dim = 32, blockSize = 16;
        float[] keyValues = [.. Enumerable.Repeat(-3e38f, blockSize * dim), .. new float[blockSize * dim]];
        byte[] keys = Arrays.Encode(keyValues, ElementType.Float32), query = Arrays.Encode([.. Enumerable.Repeat(10f, dim)], ElementType.Float32);
        byte[] values = Arrays.Encode([.. Enumerable.Repeat(-7f, blockSize * dim), .. Enumerable.Repeat(5f, blockSize * dim)], ElementType.Float32);
        var cache = PagedView.HeadBlocks(Arrays.Address(keys), Arrays.Address(values), ElementType.Float32, blockSize, dim);
        var queries = TensorView.Packed(Arrays.Address(query), ElementType.Float32, 1, 1, dim);
        foreach (int[] blocks in (int[][])[[0, 1], [1, 0]])
        {
            var (output, logSumExp) = Decode(backendName, cache, queries, 1, blocks, 2, [2 * blockSize], new AttentionOptions());
            Assert.All(output, x => Assert.Equal(5, x, 1e-5));
            Assert.Equal(Math.Log(blockSize), logSumExp[0], 1e-5);
        }
        GC.KeepAlive((keys, values, query));
    }

    [Fact]
    public void Bad_shapes_are_named()
    {
        byte[] memory = Arrays.Encode(new float[4096], ElementType.Float32);
        nint address = Arrays.Address(memory);
        var cache = PagedView.HeadBlocks(address, address, ElementType.Float32, 16, 32);
        var query = TensorView.Packed(address, ElementType.Float32, 2, 4, 32);
        Refused("There are 3 lengths", query, [0, 0, 0], new AttentionOptions());
        Refused("A head holds 17 tokens", query, [1, 2, 17, 0], new AttentionOptions());
        Refused("A head holds -1 tokens", query, [-1, 2, 1, 0], new AttentionOptions());
        Refused("the cache has dimension 32", query with { Dim = 64 }, [1, 2, 1, 0], new AttentionOptions());
        Refused("must be a multiple", query with { Heads = 3 }, [1, 2, 1, 0], new AttentionOptions());
        Refused("SoftCap is -1", query, [1, 2, 1, 0], new AttentionOptions { SoftCap = -1 });
        Refused("Scale is 0", query, [1, 2, 1, 0], new AttentionOptions { Scale = 0 });
        GC.KeepAlive(memory);

        void Refused(string part, TensorView queries, int[] lengths, AttentionOptions options) =>
            Assert.Contains(part, Assert.Throws<CompactorException>(() => Decode("cpu128", cache, queries, 2, [0, 1, 2, 3], 1, lengths, options)).Message);
    }

    private static (float[] Output, float[] LogSumExp) Decode(string backendName, PagedView cache, TensorView query, int kvHeads, int[] tables, int rowStride,
        int[] lengths, AttentionOptions options, int threads = 2)
    {
        using var backend = Backends.Create(backendName, threads);
        using var tableMemory = backend.Allocate<int>(tables.Length);
        using var lengthMemory = backend.Allocate<int>(lengths.Length);
        using var output = backend.Allocate<float>(query.Tokens * query.Heads * query.Dim);
        using var sums = backend.Allocate<float>(query.Tokens * query.Heads);
        tables.CopyTo(tableMemory.View.AsSpan());
        lengths.CopyTo(lengthMemory.View.AsSpan());
        backend.DecodeAttention(cache, query, kvHeads, new PagedTables(tableMemory.View, rowStride, lengthMemory.View), options, output.View, sums.View);
        return (Arrays.Copy(output), Arrays.Copy(sums));
    }

    private static (double[,] Keys, double[,] Values) Dense(PagedView cache, byte[] keys, byte[] values, int[] blocks, int tableStart, int length, int head)
    {
        double[,] k = new double[length, cache.Dim], v = new double[length, cache.Dim];
        for (int slot = 0; slot < length; slot++)
            for (int d = 0; d < cache.Dim; d++)
            {
                int at = (int)(blocks[tableStart + slot / cache.BlockSize] * cache.BlockStride + slot % cache.BlockSize * cache.SlotStride + head * cache.HeadStride) + d;
                (k[slot, d], v[slot, d]) = (Element(keys, cache.ElementType, at), Element(values, cache.ElementType, at));
            }
        return (k, v);
    }

    private static double Element(byte[] bytes, ElementType type, int index) => type switch
    {
        ElementType.Float32 => BitConverter.ToSingle(bytes, 4 * index),
        ElementType.Float16 => (double)BitConverter.ToHalf(bytes, 2 * index),
        _ => BitConverter.Int32BitsToSingle(BitConverter.ToUInt16(bytes, 2 * index) << 16),
    };

    private static float[] Draw(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() * 2 - 1))];
}
