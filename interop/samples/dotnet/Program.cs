using System.Runtime.InteropServices;
using PInvokeSample;
using static PInvokeSample.Native;

// A .NET host that knows nothing but compactor.h: compresses one layer's prefill into a paged cache and decodes a token, which must agree with plain attention.
unsafe
{
    const int tokens = 300, queryHeads = 8, kvHeads = 2, dim = 64;
    Check(compactor_set_log(&Log, 0));
    var open = new BackendOptions { StructSize = (uint)sizeof(BackendOptions), Kind = BackendCpu }; // the arrays below are in host memory
    Check(compactor_backend_open(&open, out ulong backend));
    Check(compactor_cache_create(backend, new CacheOptions { StructSize = (uint)sizeof(CacheOptions), Layers = 1, KvHeads = kvHeads, HeadDim = dim, Blocks = 32, BlockSize = 32 }, out ulong cache));
    Check(compactor_sequence_create(cache, out ulong sequence));

    var options = new Options { StructSize = (uint)sizeof(Options) };
    Check(compactor_options_preset(PresetPaper, ref options));
    int* cuSeqlens = stackalloc int[] { 0, tokens };
    var shape = new Shape { StructSize = (uint)sizeof(Shape), Sequences = 1, CuSeqlens = cuSeqlens, QueryHeads = queryHeads, KvHeads = kvHeads, HeadDim = dim };
    Check(compactor_plan_create(shape, options, new Budget { StructSize = (uint)sizeof(Budget), Unit = BudgetRetention, Amount = 0.25 }, 1, out ulong plan));

    var random = new Random(1);
    float[] keyRows = Rows(tokens * kvHeads), valueRows = Rows(tokens * kvHeads), queryRows = Rows(tokens * queryHeads), newQuery = Rows(queryHeads);
    var output = new float[queryHeads * dim];
    fixed (float* keys = keyRows, values = valueRows, queries = queryRows, query = newQuery, attended = output)
    {
        Tensor key = Packed(keys, tokens, kvHeads), value = Packed(values, tokens, kvHeads), packedQuery = Packed(queries, tokens, queryHeads);
        var rotary = new Rotary { StructSize = (uint)sizeof(Rotary), RotaryDim = dim, Theta = 500000 };
        var inputs = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, Query = &packedQuery, Rotary = &rotary };
        Check(compactor_sequence_compress(sequence, 1, 0, plan, inputs, null, out ulong compaction));
        Check(compactor_compaction_complete(compaction));
        Check(compactor_sequence_attend(sequence, 1, 0, Packed(query, 1, queryHeads), null, attended, output.Length, null, 0));
    }

    int* lengths = stackalloc int[kvHeads];
    Check(compactor_sequence_lengths(sequence, 0, lengths, kvHeads, null));
    double largest = 0;
    for (int head = 0; head < kvHeads; head++)
    {
        int n = lengths[head];
        var (heldKeys, heldValues, positions) = (new float[n * dim], new float[n * dim], new int[n]);
        fixed (float* k = heldKeys, v = heldValues)
        fixed (int* p = positions)
            Check(compactor_sequence_read(sequence, 0, head, k, (ulong)n * dim * 4, v, (ulong)n * dim * 4, p, n));
        for (int q = head * queryHeads / kvHeads; q < (head + 1) * queryHeads / kvHeads; q++)
            largest = Math.Max(largest, Difference(newQuery.AsSpan(q * dim, dim), heldKeys, heldValues, output.AsSpan(q * dim, dim)));
    }
    Console.WriteLine($"{tokens} tokens a head became {lengths[0]} and {lengths[1]}; attention differs from plain attention by {largest:0.0e-0} at most");

    Check(compactor_sequence_free(sequence));
    Check(compactor_cache_destroy(cache));
    Check(compactor_plan_destroy(plan));
    Check(compactor_backend_close(backend));
    Check(compactor_live_handles(out long handles));
    return largest < 1e-5 && handles == 0 ? 0 : 1;

    float[] Rows(int rows) => [.. Enumerable.Range(0, rows * dim).Select(_ => random.NextSingle() * 2 - 1)];

    static Tensor Packed(float* data, int tokens, int heads) => new()
    {
        StructSize = (uint)sizeof(Tensor),
        ElementType = Float32,
        Data = data,
        DataBytes = (ulong)tokens * (ulong)heads * dim * sizeof(float),
        Tokens = tokens,
        Heads = heads,
        Dim = dim,
        TokenStride = heads * dim,
        HeadStride = dim,
    };

    static double Difference(ReadOnlySpan<float> query, float[] keys, float[] values, ReadOnlySpan<float> output)
    {
        var sums = new double[dim];
        double total = 0, largest = 0;
        for (int i = 0; i < keys.Length; i += dim)
        {
            double logit = 0;
            for (int d = 0; d < dim; d++)
                logit += (double)query[d] * keys[i + d];
            double weight = Math.Exp(logit / Math.Sqrt(dim));
            total += weight;
            for (int d = 0; d < dim; d++)
                sums[d] += weight * values[i + d];
        }
        for (int d = 0; d < dim; d++)
            largest = Math.Max(largest, Math.Abs(sums[d] / total - output[d]));
        return largest;
    }
}

[UnmanagedCallersOnly]
static unsafe void Log(nint userData, int level, byte* message) => Console.Error.WriteLine(Marshal.PtrToStringUTF8((nint)message));
