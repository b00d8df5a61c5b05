using System.Runtime.InteropServices;
using Compactor.Native.Paging;
using Compactor.Native.Reference;
using Xunit;

namespace Compactor.Native.Tests.Support;

/// <summary>A batch of new query tokens over ragged heads of a paged cache with gaps in their positions, and its attention by a plain loop over float64 rows.</summary>
internal sealed class PagedBatch
{
    private readonly int _seed;

    /// <param name="seed">Seed of everything drawn.</param>
    /// <param name="type">Element type.</param>
    /// <param name="dim">D.</param>
    /// <param name="kvHeads">Hkv.</param>
    /// <param name="group">G.</param>
    /// <param name="blockSize">Slots of a block.</param>
    /// <param name="tokens">New tokens of each sequence.</param>
    /// <param name="lengths">Slots of each (sequence, head), the new ones among them.</param>
    public PagedBatch(int seed, ElementType type, int dim, int kvHeads, int group, int blockSize, int[] tokens, int[] lengths)
    {
        (_seed, Type, Dim, KvHeads, Group, BlockSize, Lengths) = (seed, type, dim, kvHeads, group, blockSize, lengths);
        var random = new Random(seed);
        QueryStarts = [0, .. tokens.Select((_, b) => tokens[..(b + 1)].Sum())];
        RowStride = lengths.Select(n => (n + blockSize - 1) / blockSize).DefaultIfEmpty(0).Max();
        Tables = [.. Enumerable.Range(0, lengths.Length * RowStride)];
        random.Shuffle(Tables);
        SlotPositions = new int[Tables.Length * blockSize];
        QueryPositions = new int[QueryStarts[^1]];
        for (int row = 0; row < lengths.Length; row++)
        {
            // The new tokens follow each other up to the same position in every head; what came before has gaps.
            int b = row / kvHeads, position = 2 * lengths.Max() + tokens[b];
            for (int slot = lengths[row] - 1; slot >= 0; slot--)
            {
                SlotPositions[Tables[row * RowStride + slot / blockSize] * blockSize + slot % blockSize] = position;
                if (lengths[row] - slot <= tokens[b])
                    QueryPositions[QueryStarts[b + 1] - (lengths[row] - slot)] = position;
                position -= lengths[row] - slot < tokens[b] ? 1 : 1 + random.Next(2);
            }
        }
        int slots = Math.Max(1, Tables.Length * blockSize);
        Keys = Arrays.Encode(Draw(random, slots * dim), type);
        Values = Arrays.Encode(Draw(random, slots * dim), type);
        Query = Arrays.Encode(Draw(random, QueryTokens * QueryHeads * dim), type);
        Sinks = Arrays.Encode(Draw(random, QueryHeads), ElementType.Float32);
    }

    public ElementType Type { get; }
    public int Dim { get; }
    public int KvHeads { get; }
    public int Group { get; }
    public int BlockSize { get; }
    public int[] Lengths { get; }
    public int[] QueryStarts { get; }
    public int RowStride { get; }
    public int[] Tables { get; }
    public int[] SlotPositions { get; }
    public int[] QueryPositions { get; }
    public byte[] Keys { get; }
    public byte[] Values { get; }
    public byte[] Query { get; }
    public byte[] Sinks { get; }
    public int QueryTokens => QueryStarts[^1];
    public int QueryHeads => KvHeads * Group;

    public override string ToString() =>
        $"seed {_seed}: {Type}, D {Dim}, Hkv {KvHeads}, G {Group}, blocks of {BlockSize}, query starts {string.Join(' ', QueryStarts)}, lengths {string.Join(' ', Lengths)}";

    /// <summary>Runs an operation of a backend over copies of everything in its memory.</summary>
    public (float[] Output, float[] LogSumExp) Attend(KvBackend backend, AttentionOptions options, bool sinks = false, int window = 0, bool extend = true)
    {
        using var held = new Held(backend);
        options = options with
        {
            Sinks = sinks ? held.Copy<float>(MemoryMarshal.Cast<byte, float>(Sinks)[..QueryHeads]) : null,
            Window = window == 0 ? null : new SlidingWindow(window, held.Copy<int>(SlotPositions), held.Copy<int>(QueryPositions)),
        };
        BufferView<float> output = held.New<float>((long)QueryTokens * QueryHeads * Dim), sums = held.New<float>((long)QueryTokens * QueryHeads);
        var cache = PagedView.HeadBlocks(held.Copy<byte>(Keys).Address, held.Copy<byte>(Values).Address, Type, BlockSize, Dim);
        var query = TensorView.Packed(held.Copy<byte>(Query).Address, Type, QueryTokens, QueryHeads, Dim);
        var tables = new PagedTables(held.Copy<int>(Tables), RowStride, held.Copy<int>(Lengths));
        if (extend)
            backend.ExtendAttention(new ExtendPlan(QueryStarts, QueryHeads, KvHeads), cache, query, tables, options, output, sums);
        else
            backend.DecodeAttention(cache, query, KvHeads, tables, options, output, sums);
        return (backend.Read(output), backend.Read(sums));
    }

    /// <summary>Compares with float64 attention of every query row over the rows it sees.</summary>
    public void AssertReference((float[] Output, float[] LogSumExp) actual, AttentionOptions options, bool sinks = false, int window = 0, double tolerance = 1e-5)
    {
        for (int b = 0, q = 0; b + 1 < QueryStarts.Length; b++)
            for (; q < QueryStarts[b + 1]; q++)
                for (int head = 0; head < QueryHeads; head++)
                {
                    int row = b * KvHeads + head / Group;
                    List<int> seen = [];
                    for (int slot = 0; slot < Lengths[row] - (QueryStarts[b + 1] - 1 - q); slot++)
                    {
                        int at = Tables[row * RowStride + slot / BlockSize] * BlockSize + slot % BlockSize;
                        if (window == 0 || QueryPositions[q] - SlotPositions[at] < window)
                            seen.Add(at);
                    }
                    var (expected, lse) = ReferenceDecodeAttention.Attend([.. Row(Query, q * QueryHeads + head)], Rows(Keys, seen), Rows(Values, seen), options,
                        sinks ? BitConverter.ToSingle(Sinks, 4 * head) : double.NegativeInfinity);
                    int index = q * QueryHeads + head;
                    double error = Arrays.RelativeError(actual.Output.AsSpan(index * Dim, Dim), [.. expected.Select(x => (float)x)]);
                    Assert.True(error <= tolerance, $"{this}: token {q}, query head {head}: error {error}");
                    Assert.True(actual.LogSumExp[index] == lse || Math.Abs(actual.LogSumExp[index] - lse) <= 2e-5 * Math.Max(1, Math.Abs(lse)), $"{this}: token {q}, query head {head}: log-sum-exp {actual.LogSumExp[index]} instead of {lse}");
                }
    }

    private double[,] Rows(byte[] bytes, List<int> slots)
    {
        var rows = new double[slots.Count, Dim];
        for (int i = 0; i < slots.Count; i++)
            for (int d = 0; d < Dim; d++)
                rows[i, d] = Element(bytes, slots[i] * Dim + d);
        return rows;
    }

    private IEnumerable<double> Row(byte[] bytes, int row) => Enumerable.Range(0, Dim).Select(d => Element(bytes, row * Dim + d));

    private double Element(byte[] bytes, int index) => Type switch
    {
        ElementType.Float32 => BitConverter.ToSingle(bytes, 4 * index),
        ElementType.Float16 => (double)BitConverter.ToHalf(bytes, 2 * index),
        _ => BitConverter.Int32BitsToSingle(BitConverter.ToUInt16(bytes, 2 * index) << 16),
    };

    private static float[] Draw(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() * 2 - 1))];

    private sealed class Held(KvBackend backend) : IDisposable
    {
        private readonly List<IDisposable> _memory = [];

        public BufferView<T> New<T>(long length) where T : unmanaged
        {
            var memory = backend.Allocate<T>(length);
            _memory.Add(memory);
            return memory.View;
        }

        public BufferView<T> Copy<T>(ReadOnlySpan<T> values) where T : unmanaged
        {
            var view = New<T>(values.Length);
            backend.Upload(values, view);
            return view;
        }

        public void Dispose() => _memory.ForEach(memory => memory.Dispose());
    }
}
