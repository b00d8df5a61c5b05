using System.Runtime.InteropServices;
using System.Text;

namespace OnnxRuntimeSample;

/// <summary>Writes the two ONNX models of this sample: a field is a tag and a value, a message is a field that holds fields.</summary>
internal static class Model
{
    private const int Float = 1, Int32 = 6, Int64 = 7;

    /// <summary>One attention layer's projections of hidden states <c>[B, S, E]</c>, named and laid out as decoder exports have them: <c>present.0.key</c> is <c>[B, Hkv, S, D]</c>.</summary>
    public static byte[] Prefill(int width, int queryHeads, int kvHeads, int dim) => Build([("", 17)],
        [Value("hidden", Float, "batch", "tokens", width)],
        [.. new[] { "query", "present.0.key", "present.0.value" }.Select(name => Value(name, Float, "batch", "heads", "tokens", dim))],
        [.. Projection("query", queryHeads), .. Projection("present.0.key", kvHeads), .. Projection("present.0.value", kvHeads)]);

    /// <summary>One decode step: the GroupQueryAttention operator over a cache <c>[B, Hkv, capacity, D]</c> that input and output share.</summary>
    public static byte[] Decode(int queryHeads, int kvHeads, int dim) => Build([("", 17), ("com.microsoft", 1)],
        [
            Value("query", Float, "batch", 1, queryHeads * dim), Value("key", Float, "batch", 1, kvHeads * dim), Value("value", Float, "batch", 1, kvHeads * dim),
            Value("past.0.key", Float, "batch", kvHeads, "capacity", dim), Value("past.0.value", Float, "batch", kvHeads, "capacity", dim),
            Value("seqlens_k", Int32, "batch"), Value("total_sequence_length", Int32, 1),
        ],
        [Value("output", Float, "batch", 1, queryHeads * dim), Value("present.0.key", Float, "batch", kvHeads, "capacity", dim), Value("present.0.value", Float, "batch", kvHeads, "capacity", dim)],
        [Field(1, Node("GroupQueryAttention", "com.microsoft", ["query", "key", "value", "past.0.key", "past.0.value", "seqlens_k", "total_sequence_length"],
            ["output", "present.0.key", "present.0.value"], Integer("num_heads", queryHeads), Integer("kv_num_heads", kvHeads)))]);

    private static byte[][] Projection(string name, int heads, int width = Program.Width, int dim = Program.Dim)
    {
        var weights = new float[width * heads * dim];
        var random = new Random(name.Length * heads);
        for (int i = 0; i < weights.Length; i++)
            weights[i] = (random.NextSingle() * 2 - 1) / MathF.Sqrt(width);
        return
        [
            Field(5, Tensor(name + ".weight", Float, MemoryMarshal.AsBytes(weights.AsSpan()), width, heads * dim)),
            Field(5, Tensor(name + ".shape", Int64, MemoryMarshal.AsBytes((ReadOnlySpan<long>)[0, 0, heads, dim]), 4)),
            Field(1, Node("MatMul", "", ["hidden", name + ".weight"], [name + ".flat"])),
            Field(1, Node("Reshape", "", [name + ".flat", name + ".shape"], [name + ".heads"])),
            Field(1, Node("Transpose", "", [name + ".heads"], [name], Integers("perm", 0, 2, 1, 3))),
        ];
    }

    private static byte[] Build((string Domain, long Version)[] operators, byte[][] inputs, byte[][] outputs, byte[][] content) =>
    [
        .. Field(1, 8),
        .. Field(7, [.. content.SelectMany(part => part), .. Field(2, "layer"), .. inputs.SelectMany(input => Field(11, input)), .. outputs.SelectMany(output => Field(12, output))]),
        .. operators.SelectMany(op => Field(8, [.. Field(1, op.Domain), .. Field(2, op.Version)])),
    ];

    private static byte[] Node(string operation, string domain, string[] inputs, string[] outputs, params byte[][] attributes) =>
    [
        .. inputs.SelectMany(name => Field(1, name)), .. outputs.SelectMany(name => Field(2, name)), .. Field(4, operation),
        .. attributes.SelectMany(attribute => Field(5, attribute)), .. Field(7, domain),
    ];

    private static byte[] Integer(string name, long value) => [.. Field(1, name), .. Field(3, value), .. Field(20, 2)];

    private static byte[] Integers(string name, params long[] values) => [.. Field(1, name), .. values.SelectMany(value => Field(8, value)), .. Field(20, 7)];

    private static byte[] Tensor(string name, int type, ReadOnlySpan<byte> data, params long[] dims) =>
        [.. dims.SelectMany(dim => Field(1, dim)), .. Field(2, type), .. Field(8, name), .. Field(9, data)];

    /// <summary>An input or output; dimensions are numbers or names.</summary>
    private static byte[] Value(string name, int type, params object[] dims) =>
        [.. Field(1, name), .. Field(2, Field(1, [.. Field(1, type), .. Field(2, dims.SelectMany(dim => Field(1, dim is int n ? Field(1, n) : Field(2, (string)dim))).ToArray())]))];

    private static byte[] Field(int number, long value) => [.. Varint((ulong)number << 3), .. Varint((ulong)value)];

    private static byte[] Field(int number, string text) => Field(number, Encoding.UTF8.GetBytes(text));

    private static byte[] Field(int number, ReadOnlySpan<byte> bytes) => [.. Varint((ulong)number << 3 | 2), .. Varint((ulong)bytes.Length), .. bytes];

    private static List<byte> Varint(ulong value)
    {
        var bytes = new List<byte>();
        for (; value >= 128; value >>= 7)
            bytes.Add((byte)(value | 128));
        bytes.Add((byte)value);
        return bytes;
    }
}
