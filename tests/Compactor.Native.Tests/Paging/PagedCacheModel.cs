using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using Compactor.Native.Compression;
using Compactor.Native.Paging;
using Compactor.Native.Reference;
using Compactor.Native.Tests.Support;

namespace Compactor.Native.Tests.Paging;

/// <summary>
/// A paged cache beside a plain dictionary of what it should hold. Steps are three numbers each, read against the state they meet, so that any sub-list of steps
/// is a valid list: failures can be shrunk by leaving steps out.
/// </summary>
internal sealed class PagedCacheModel : IDisposable
{
    public enum Kind { Create, Store, StoreSurvivors, Append, Compact, Cancel, Fork, Free, Reserve, Recompress, Exhaust }

    public readonly record struct Step(Kind Kind, int Sequence, int Seed)
    {
        public override string ToString() => $"{Kind}({Sequence}, {Seed})";
    }

    private const int Layers = 2, Heads = 3, MaxSequences = 8;

    private readonly KvBackend _backend;
    private readonly int _dim;
    private readonly PagedCache _cache;
    private readonly List<(CacheSequence Sequence, Dictionary<(int Layer, int Head), List<(int Position, byte[] Row)>> Held)> _sequences = [];
    private readonly RotaryEmbedding _rotary;

    private static readonly CompressionOptions s_options = CompressionPresets.Paper with { SketchDimension = 16, ProtectFirst = 2, ProtectLast = 3, MinTokensPerHead = 4 };

    private readonly Random _values = new(7);
    private readonly List<BackendBuffer<byte>> _rows = [];
    private byte _next;

    /// <param name="backend">What holds the cache; disposed with the model.</param>
    /// <param name="type">Element type.</param>
    /// <param name="blocks">Blocks of the pool.</param>
    /// <param name="dim">Head dimension.</param>
    public PagedCacheModel(KvBackend backend, ElementType type, int blocks, int dim = 16)
    {
        (_backend, _dim) = (backend, dim);
        _rotary = RotaryEmbedding.FromTheta(10000, dim);
        _cache = new PagedCache(backend, new PagedCacheOptions { Layers = Layers, KvHeads = Heads, HeadDim = dim, ElementType = type, Blocks = blocks, BlockSize = 16 });
    }

    public int Refused { get; private set; }

    public int Done { get; private set; }

    /// <summary>Does one step on both sides.</summary>
    /// <param name="step">The step.</param>
    /// <param name="checkEverything">Whether to compare every sequence, or only the one the step touched.</param>
    public void Do(Step step, bool checkEverything)
    {
        var random = new Random(step.Seed);
        int free = _cache.FreeBlocks, before = _sequences.Count, index = before == 0 ? -1 : step.Sequence % before;
        if (step.Kind == Kind.Create)
        {
            if (before < MaxSequences)
                _sequences.Add((_cache.CreateSequence(), Empty()));
            index = _sequences.Count - 1;
        }
        else if (index >= 0)
        {
            bool expected = CanDo(step, random, index);
            try
            {
                Change(step, new Random(step.Seed), index);
                Expect(expected, "an operation that CanStore refused was done");
                Done++;
            }
            catch (CompactorException e) when (e.Status == CompactorStatus.OutOfBlocks)
            {
                Expect(step.Kind != Kind.Exhaust, "exhausting took more than is free");
                Expect(!expected, $"an operation that CanStore allowed was refused: {e.Message}");
                Expect(_cache.FreeBlocks == free && _sequences.Count == before, "a refused operation changed the pool");
                Refused++;
            }
        }
        FreeRows();
        CheckBlocks();
        for (int i = 0; i < _sequences.Count; i++)
            if (checkEverything || i == index)
                CheckContents(i);
    }

    private static Dictionary<(int, int), List<(int, byte[])>> Empty() =>
        (from layer in Enumerable.Range(0, Layers) from head in Enumerable.Range(0, Heads) select (layer, head)).ToDictionary(key => key, _ => new List<(int, byte[])>());

    private bool CanDo(Step step, Random random, int index)
    {
        var (sequence, held) = _sequences[index];
        int layer = random.Next(Layers);
        switch (step.Kind)
        {
            case Kind.Store or Kind.Reserve:
                return sequence.CanStore(layer, random.Next(40));
            case Kind.Append:
                return sequence.CanStore(layer, 1);
            case Kind.StoreSurvivors:
                int tokens = random.Next(60);
                return Enumerable.Range(0, Heads).Sum(head =>
                {
                    int needed = (held[(layer, head)].Count + Subset(random, tokens).Length + 15) / 16;
                    return Math.Max(0, needed - sequence.Blocks(layer, head).Length);
                }) <= _cache.FreeBlocks;
            case Kind.Compact or Kind.Cancel:
                return Enumerable.Range(0, Heads).Sum(head => Subset(random, held[(layer, head)].Count).Length) / 16 + Heads <= _cache.FreeBlocks;
            case Kind.Recompress:
                return !Recompressible || RecompressPlan(sequence, layer, random) is not { KeepsEverything: false } plan || plan.KeptPairs / 16 + Heads <= _cache.FreeBlocks;
            case Kind.Fork:
                return _sequences.Count >= MaxSequences || held.Values.Count(list => list.Count % 16 != 0) <= _cache.FreeBlocks;
            default:
                return true;
        }
    }

    private void Change(Step step, Random random, int index)
    {
        var (sequence, held) = _sequences[index];
        int layer = random.Next(Layers);
        switch (step.Kind)
        {
            case Kind.Store or Kind.Append:
                int count = step.Kind == Kind.Append ? 1 : random.Next(40), position = random.Next(1000);
                var (bytes, view) = Rows(count + 2);
                sequence.Store(layer, view, view, 1, count, position);
                GC.KeepAlive(bytes);
                for (int head = 0; head < Heads; head++)
                    for (int t = 0; t < count; t++)
                        held[(layer, head)].Add((position + t, Row(bytes, 1 + t, head)));
                break;
            case Kind.Reserve:
                sequence.Reserve(layer, random.Next(40));
                break;
            case Kind.StoreSurvivors:
                int tokens = random.Next(60);
                int[][] kept = [.. Enumerable.Range(0, Heads).Select(_ => Subset(random, tokens))];
                var (source, sourceView) = Rows(tokens);
                sequence.StoreSurvivors(layer, sourceView, sourceView, 0, [.. kept.SelectMany(k => k)], Offsets(kept), 100);
                GC.KeepAlive(source);
                for (int head = 0; head < Heads; head++)
                    held[(layer, head)].AddRange(kept[head].Select(t => (100 + t, Row(source, t, head))));
                break;
            case Kind.Compact or Kind.Cancel:
                int[][] slots = [.. Enumerable.Range(0, Heads).Select(head => Subset(random, held[(layer, head)].Count))];
                int[] flat = [.. slots.SelectMany(s => s)], offsets = Offsets(slots);
                if (step.Kind == Kind.Compact)
                {
                    sequence.Compact(layer, flat, offsets);
                    for (int head = 0; head < Heads; head++)
                        held[(layer, head)] = [.. slots[head].Select(slot => held[(layer, head)][slot])];
                }
                else
                {
                    using var pending = sequence.BeginCompaction(layer, flat.Length);
                    if (step.Seed % 2 == 0)
                        pending.Move(flat, offsets);
                }
                break;
            case Kind.Recompress:
                Recompress(sequence, held, layer, random);
                break;
            case Kind.Exhaust:
                Exhaust(sequence, held, layer);
                break;
            case Kind.Fork:
                if (_sequences.Count < MaxSequences)
                    _sequences.Add((sequence.Fork(), held.ToDictionary(entry => entry.Key, entry => entry.Value.ToList())));
                break;
            case Kind.Free:
                sequence.Dispose();
                _sequences.RemoveAt(index);
                break;
        }
    }

    private bool Recompressible => _cache.Options.ElementType != ElementType.Opaque8;

    private static LayerPlan RecompressPlan(CacheSequence sequence, int layer, Random random) =>
        new(CacheCompressor.HeldShape([sequence], layer), s_options, Budget.Retention(random.NextDouble()));

    /// <summary>
    /// Recompresses by real scores. What is kept must be as much as the budget says, protected slots among it, in order, with the best of float64 leverage of
    /// what the dictionary holds, to rounding.
    /// </summary>
    private void Recompress(CacheSequence sequence, Dictionary<(int Layer, int Head), List<(int Position, byte[] Row)>> held, int layer, Random random)
    {
        if (!Recompressible)
            return;
        var plan = RecompressPlan(sequence, layer, random);
        using (var pending = CacheCompressor.Recompress([sequence], layer, plan, _rotary))
            pending.Complete();
        double lowestKept = double.PositiveInfinity, highestDropped = double.NegativeInfinity;
        long kept = 0;
        for (int head = 0; head < Heads; head++)
        {
            var before = held[(layer, head)];
            double[] scores = Scores(before, plan, layer);
            var (positions, keys, _) = sequence.Read(layer, head);
            var after = new List<(int, byte[])>();
            int rowBytes = _dim * _cache.Options.ElementType.Size();
            for (int slot = 0; slot < before.Count; slot++)
                if (after.Count < positions.Length && before[slot].Position == positions[after.Count] && keys.AsSpan(after.Count * rowBytes, rowBytes).SequenceEqual(before[slot].Row))
                {
                    after.Add(before[slot]);
                    // The least a head keeps says nothing about other heads.
                    if (!plan.IsProtected(0, head, slot) && positions.Length > s_options.ProtectFirst + s_options.ProtectLast)
                        lowestKept = Math.Min(lowestKept, scores[slot]);
                }
                else
                {
                    Expect(!plan.IsProtected(0, head, slot), $"protected slot {slot} of head {head} was dropped");
                    highestDropped = Math.Max(highestDropped, scores[slot]);
                }
            Expect(after.Count == positions.Length, $"head {head} kept {positions.Length} slots, of which {after.Count} were held");
            kept += after.Count;
            held[(layer, head)] = after;
        }
        Expect(kept == plan.KeptPairs, $"{kept} pairs were kept, not {plan.KeptPairs}");
        Expect(highestDropped <= lowestKept + 1e-2, $"a pair of score {highestDropped} was dropped and one of {lowestKept} kept");
    }

    /// <summary>z of float64 leverage within a head.</summary>
    private double[] Scores(List<(int Position, byte[] Row)> held, LayerPlan plan, int layer)
    {
        var rows = new double[held.Count, _dim];
        var (cos, sin) = (new double[_dim / 2], new double[_dim / 2]);
        for (int i = 0; i < held.Count; i++)
        {
            float[] row = Floats(held[i].Row);
            _rotary.Angles(held[i].Position, held[i].Position, cos, sin);
            for (int p = 0; p < _dim / 2; p++)
                (rows[i, p], rows[i, p + _dim / 2]) = (cos[p] * row[p] + sin[p] * row[p + _dim / 2], cos[p] * row[p + _dim / 2] - sin[p] * row[p]);
        }
        if (held.Count == 0)
            return [];
        double[] o = ReferenceLeverage.Scores(rows, Sketch.Draw(plan.Shape, s_options).Of(0, 0), 16, s_options.Epsilon, center: true);
        double mean = o.Average(), std = Math.Sqrt(o.Average(x => (x - mean) * (x - mean)));
        return [.. o.Select(x => std <= o.Max() / 65536 ? 0 : (x - mean) / std)];
    }

    private float[] Floats(byte[] row) => _cache.Options.ElementType switch
    {
        ElementType.Float32 => MemoryMarshal.Cast<byte, float>(row).ToArray(),
        ElementType.Float16 => [.. MemoryMarshal.Cast<byte, Half>(row).ToArray().Select(x => (float)x)],
        _ => [.. MemoryMarshal.Cast<byte, ushort>(row).ToArray().Select(x => BitConverter.Int32BitsToSingle(x << 16))],
    };

    /// <summary>Takes all that is free, sees that everything that needs a block is refused and changes nothing, and gives it back.</summary>
    private void Exhaust(CacheSequence sequence, Dictionary<(int Layer, int Head), List<(int Position, byte[] Row)>> held, int layer)
    {
        var hog = _cache.CreateSequence();
        int free = _cache.FreeBlocks;
        hog.Reserve(0, free / Heads * 16);
        using var rest = _cache.CreateSequence();
        while (_cache.FreeBlocks > 0)
        {
            var (bytes, view) = Rows(1);
            // A block for one head at a time.
            rest.StoreSurvivors(1, view, view, 0, [.. Enumerable.Repeat(0, 16)], [0, .. Enumerable.Repeat(16, Heads)], 0);
            GC.KeepAlive(bytes);
        }
        string before = Blocks();
        // One token more than any head has room for.
        int beyond = Enumerable.Range(0, Heads).Max(head => sequence.Blocks(layer, head).Length * 16 - sequence.Lengths(layer)[head]) + 1;
        var (more, moreView) = Rows(beyond);
        Refused(() => sequence.Store(layer, moreView, moreView, 0, beyond, 0));
        Refused(() => sequence.StoreSurvivors(layer, moreView, moreView, 0, [.. Enumerable.Range(0, beyond)], [0, .. Enumerable.Repeat(beyond, Heads)], 0));
        Refused(() => sequence.Reserve(layer, 1 << 20));
        Refused(() => sequence.Compact(layer, [], new int[Heads + 1]));
        if (held.Values.Any(list => list.Count % 16 != 0))
            Refused(() => sequence.Fork());
        if (Recompressible && RecompressPlan(sequence, layer, new Random(1)) is { KeepsEverything: false } plan)
            Refused(() => CacheCompressor.Recompress([sequence], layer, plan, _rotary));
        Expect(Blocks() == before && _cache.FreeBlocks == 0, "a refused operation changed a table");
        GC.KeepAlive(more);
        rest.Dispose();
        hog.Dispose();
        Expect(_cache.FreeBlocks == free, "what exhausted the pool was not given back");

        string Blocks() => string.Join(";", Enumerable.Range(0, Layers * Heads).Select(i => string.Join(",", sequence.Blocks(i / Heads, i % Heads).ToArray()) + ":" + sequence.Lengths(i / Heads)[i % Heads]));

        static void Refused(Action action)
        {
            try
            {
                action();
            }
            catch (CompactorException e) when (e.Status == CompactorStatus.OutOfBlocks)
            {
                return;
            }
            Expect(false, "an operation was done without a free block");
        }
    }

    /// <summary>Every block is free, or held by exactly one sequence or one prefix that a live sequence reaches.</summary>
    private void CheckBlocks()
    {
        var held = new HashSet<int>();
        var prefixes = new Dictionary<SharedPrefix, int>();
        foreach (var (sequence, _) in _sequences)
        {
            for (int layer = 0; layer < Layers; layer++)
                foreach (int block in sequence.Table(layer).OwnBlocks())
                    Expect(held.Add(block), $"block {block} is held twice");
            for (var prefix = sequence.Prefix; prefix is not null; prefix = prefix.Continues)
            {
                prefixes[prefix] = prefixes.GetValueOrDefault(prefix) + 1;
                if (prefixes[prefix] > 1)
                    break;
            }
        }
        foreach (var (prefix, holders) in prefixes)
        {
            Expect(holders == prefix.Holders, $"a prefix counts {prefix.Holders} holders and has {holders}");
            foreach (int block in prefix.Blocks)
                Expect(held.Add(block), $"block {block} is held twice");
        }
        long pairs = prefixes.Keys.Sum(prefix => 16L * prefix.Blocks.Length) + _sequences.Sum(entry => Enumerable.Range(0, Layers).Sum(layer => entry.Sequence.Table(layer).OwnPairs(16)));
        Expect(_cache.UnusedSlots == 16L * held.Count - pairs, $"{_cache.UnusedSlots} slots are said to be unused; {16L * held.Count - pairs} are");
        Expect(held.Count + _cache.FreeBlocks == _cache.Blocks, $"{held.Count} blocks are held and {_cache.FreeBlocks} free of {_cache.Blocks}");
    }

    private void CheckContents(int index)
    {
        var (sequence, held) = _sequences[index];
        foreach (var ((layer, head), expected) in held)
        {
            var (positions, keys, values) = sequence.Read(layer, head);
            Expect(positions.SequenceEqual(expected.Select(e => e.Position)), $"positions of sequence {index}, layer {layer}, head {head} differ");
            for (int i = 0; i < expected.Count; i++)
            {
                int bytes = expected[i].Row.Length;
                Expect(keys.AsSpan(i * bytes, bytes).SequenceEqual(expected[i].Row) && values.AsSpan(i * bytes, bytes).SequenceEqual(expected[i].Row),
                    $"row {i} of sequence {index}, layer {layer}, head {head} differs");
            }
        }
    }

    private static void Expect(bool condition, [InterpolatedStringHandlerArgument(nameof(condition))] FailureMessage message)
    {
        if (!condition)
            throw new InvalidOperationException(message.Text);
    }

    private static void Expect(bool condition, string message) => Expect(condition, $"{message}");

    /// <summary>A message that is made where a condition does not hold: of the thousands a step, making each took a fifth of the time.</summary>
    [InterpolatedStringHandler]
    private readonly ref struct FailureMessage
    {
        private readonly StringBuilder? _text;

        public FailureMessage(int literalLength, int formattedCount, bool condition, out bool needed)
        {
            needed = !condition;
            _text = needed ? new StringBuilder(literalLength + 8 * formattedCount) : null;
        }

        public string Text => _text!.ToString();

        public void AppendLiteral(string text) => _text!.Append(text);

        public void AppendFormatted<T>(T value) => _text!.Append(value);
    }

    private static int[] Subset(Random random, int count)
    {
        double share = random.NextDouble();
        return [.. Enumerable.Range(0, count).Where(_ => random.NextDouble() < share)];
    }

    private static int[] Offsets(int[][] lists) => TestLayer.Offsets([.. lists.Select(list => list.Length)]);

    private (byte[] Bytes, TensorView View) Rows(int tokens)
    {
        int rowBytes = _dim * _cache.Options.ElementType.Size();
        byte[] bytes = GC.AllocateUninitializedArray<byte>(Math.Max(1, tokens * Heads * rowBytes), pinned: true);
        if (_cache.Options.ElementType == ElementType.Opaque8)
            for (int i = 0; i < tokens * Heads * rowBytes; i++)
                bytes[i] = i % rowBytes == 0 ? ++_next : (byte)(i * 31 + _next);
        else
        {
            float[] values = [.. Enumerable.Range(0, tokens * Heads * _dim).Select(_ => (float)(_values.NextDouble() - 0.5))];
            Arrays.Encode(values, _cache.Options.ElementType).AsSpan(0, tokens * Heads * rowBytes).CopyTo(bytes);
        }
        var memory = _backend.Allocate<byte>(bytes.Length);
        _backend.Upload<byte>(bytes, memory.View);
        _rows.Add(memory);
        return (bytes, TensorView.Packed(memory.View.Address, _cache.Options.ElementType, tokens, Heads, _dim));
    }

    private byte[] Row(byte[] bytes, int token, int head)
    {
        int rowBytes = _dim * _cache.Options.ElementType.Size();
        return bytes[((token * Heads + head) * rowBytes)..((token * Heads + head + 1) * rowBytes)];
    }

    private void FreeRows()
    {
        foreach (var rows in _rows)
            rows.Dispose();
        _rows.Clear();
    }

    public void Dispose()
    {
        FreeRows();
        _cache.Dispose();
        _backend.Dispose();
    }
}
