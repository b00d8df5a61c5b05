using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;
using Microsoft.ML.OnnxRuntime;

namespace OnnxRuntimeSample;

/// <summary>
/// A host on ONNX Runtime: a prefill leaves its KV cache in OrtValues, <c>present.0.key</c> and <c>present.0.value</c> [B, Hkv, S, D]. It is compressed where it lies, by
/// pointer and strides, and the next step's GroupQueryAttention runs over the same OrtValues, now with fewer tokens. No tensor is copied.
/// </summary>
internal static unsafe class Program
{
    public const int Width = 96, Dim = 32;
    private const int Batch = 2, Tokens = 128, QueryHeads = 4, KvHeads = 2;

    private static int Main()
    {
        var random = new Random(1);
        using var prefill = new InferenceSession(Model.Prefill(Width, QueryHeads, KvHeads, Dim));
        using var hidden = Tensor([Batch, Tokens, Width], random);
        using var options = new RunOptions();
        using var cache = prefill.Run(options, ["hidden"], [hidden], ["query", "present.0.key", "present.0.value"]);
        var (query, key, value) = (cache[0], cache[1], cache[2]);
        float[] keysBefore = key.GetTensorDataAsSpan<float>().ToArray(), valuesBefore = value.GetTensorDataAsSpan<float>().ToArray();

        // the cache as the library sees it: an address and strides
        using var backend = new CpuBackend();
        int[] cuSeqlens = [.. Enumerable.Range(0, Batch + 1).Select(b => b * Tokens)];
        var shape = new LayerShape(cuSeqlens, QueryHeads, KvHeads, Dim, ElementType.Float32);
        // one length for all heads, which is what this operator's cache can hold
        var plan = new LayerPlan(shape, CompressionPresets.Paper with { SelectionScope = SelectionScope.Head }, Budget.Retention(0.25));
        var inputs = new LayerInputs
        {
            Key = View(key, KvHeads),
            KeyPreRope = View(key, KvHeads), // this model has no RoPE
            Value = View(value, KvHeads),
            Query = View(query, QueryHeads),
        };
        using var selection = LayerCompressor.Select(backend, plan, inputs);
        // a block of the host's cache is a sequence's part of the tensor: [B, Hkv, S, D] is HND with blocks of S slots
        var blocks = PagedView.Hnd(Address(key), Address(value), ElementType.Float32, Tokens, KvHeads, Dim);
        var held = HostOwnedCache.Compact(backend, blocks, [new[] { 0 }, new[] { 1 }], selection);
        int kept = held[0].Length;

        // one decode step of ONNX Runtime over the compressed cache, in place: the new token goes to slot `kept`
        using var decode = new InferenceSession(Model.Decode(QueryHeads, KvHeads, Dim));
        using var newQuery = Tensor([Batch, 1, QueryHeads * Dim], random);
        using var newKey = Tensor([Batch, 1, KvHeads * Dim], random);
        using var newValue = Tensor([Batch, 1, KvHeads * Dim], random);
        using var lengths = OrtValue.CreateTensorValueFromMemory(new[] { kept, kept }, [Batch]);
        using var total = OrtValue.CreateTensorValueFromMemory(new[] { kept + 1 }, [1]);
        using var output = OrtValue.CreateTensorValueFromMemory(new float[Batch * QueryHeads * Dim], [Batch, 1, QueryHeads * Dim]);
        using var binding = decode.CreateIoBinding();
        foreach (var (name, bound) in new[] { ("query", newQuery), ("key", newKey), ("value", newValue), ("past.0.key", key), ("past.0.value", value), ("seqlens_k", lengths), ("total_sequence_length", total) })
            binding.BindInput(name, bound);
        foreach (var (name, bound) in new[] { ("output", output), ("present.0.key", key), ("present.0.value", value) })
            binding.BindOutput(name, bound);
        decode.RunWithBinding(options, binding);

        // plain attention over the tokens that were kept, from the cache as it was before
        var (indices, offsets) = (selection.KeptIndices.View.AsSpan().ToArray(), selection.KeptOffsets.View.AsSpan().ToArray());
        var outputs = output.GetTensorDataAsSpan<float>();
        double largest = 0;
        for (int b = 0; b < Batch; b++)
            for (int q = 0; q < QueryHeads; q++)
            {
                int h = q / (QueryHeads / KvHeads), row = b * KvHeads + h;
                var tokens = indices.AsSpan(offsets[row]..offsets[row + 1]);
                var expected = Attention(newQuery.GetTensorDataAsSpan<float>().Slice((b * QueryHeads + q) * Dim, Dim), keysBefore, valuesBefore, row, tokens,
                    newKey.GetTensorDataAsSpan<float>().Slice(row * Dim, Dim), newValue.GetTensorDataAsSpan<float>().Slice(row * Dim, Dim));
                for (int d = 0; d < Dim; d++)
                    largest = Math.Max(largest, Math.Abs(expected[d] - outputs[(b * QueryHeads + q) * Dim + d]));
            }
        Console.WriteLine($"present.0.key [{Batch}, {KvHeads}, {Tokens}, {Dim}]: {Tokens} tokens became {kept} in place; ONNX Runtime's attention over them differs from plain attention by {largest:0.0e-0} at most");
        return kept < Tokens && largest < 1e-4 ? 0 : 1;
    }

    private static OrtValue Tensor(long[] shape, Random random)
    {
        var data = new float[shape.Aggregate(1L, (a, b) => a * b)];
        for (int i = 0; i < data.Length; i++)
            data[i] = random.NextSingle() * 2 - 1;
        return OrtValue.CreateTensorValueFromMemory(data, shape);
    }

    private static TensorView View(OrtValue tensor, int heads) => TensorView.BatchHeadSequence(Address(tensor), ElementType.Float32, Batch, heads, Tokens, Dim);

    private static nint Address(OrtValue tensor)
    {
        fixed (byte* data = tensor.GetTensorMutableRawData())
            return (nint)data; // memory of ONNX Runtime's, which does not move
    }

    private static double[] Attention(ReadOnlySpan<float> query, float[] keys, float[] values, int row, ReadOnlySpan<int> tokens, ReadOnlySpan<float> newKey, ReadOnlySpan<float> newValue)
    {
        var output = new double[Dim];
        double sum = 0;
        foreach (int token in tokens)
            Add(query, keys.AsSpan((row * Tokens + token) * Dim, Dim), values.AsSpan((row * Tokens + token) * Dim, Dim));
        Add(query, newKey, newValue);
        return [.. output.Select(x => x / sum)];

        void Add(ReadOnlySpan<float> q, ReadOnlySpan<float> k, ReadOnlySpan<float> v)
        {
            double logit = 0;
            for (int d = 0; d < Dim; d++)
                logit += (double)q[d] * k[d];
            double weight = Math.Exp(logit / Math.Sqrt(Dim));
            sum += weight;
            for (int d = 0; d < Dim; d++)
                output[d] += weight * v[d];
        }
    }
}
