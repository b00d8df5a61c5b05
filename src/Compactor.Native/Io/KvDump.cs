using System.Globalization;
using Compactor.Native.Compression;

namespace Compactor.Native.Io;

/// <summary>
/// A KV cache saved as safetensors, presented layer by layer for compression. Tensors of layer i are named <c>layers.{i}.key</c>,
/// <c>.value</c> and, where known, <c>.key_pre_rope</c>, <c>.query</c> and <c>.probe_query</c>; a dump of one layer may leave out the
/// <c>layers.{i}.</c>. <c>cu_seqlens</c>, <c>phi</c>, <c>cos</c> and <c>sin</c> are shared by all layers and optional.
/// </summary>
public sealed class KvDump : IDisposable
{
    private const string Key = "key", Value = "value", KeyPreRope = "key_pre_rope", Query = "query", ProbeQuery = "probe_query";
    private const string CuSeqlensName = "cu_seqlens", PhiName = "phi", CosName = "cos", SinName = "sin";

    private KvDump(SafetensorsFile file, KvLayout layout)
    {
        File = file;
        Layout = layout;
        var unused = new List<string>();
        var roles = new SortedDictionary<int, Dictionary<string, SafetensorsTensor>>();
        bool numbered = false;
        SafetensorsTensor? unnumbered = null;
        foreach (var tensor in file.Tensors.Values)
            if (Role(tensor.Name) is var (index, role))
            {
                numbered |= index is not null;
                unnumbered ??= index is null ? tensor : null;
                if (!roles.TryGetValue(index ?? 0, out var layer))
                    roles.Add(index ?? 0, layer = new Dictionary<string, SafetensorsTensor>(StringComparer.Ordinal));
                layer.TryAdd(role, tensor);
            }
            else if (tensor.Name is not (CuSeqlensName or PhiName or CosName or SinName))
                unused.Add(tensor.Name);
        unused.Sort(StringComparer.Ordinal);
        UnusedTensors = unused;
        if (numbered && unnumbered is not null)
            throw Invalid($"it holds layers.* tensors and also {Describe(unnumbered)} without a layer; rename or remove that.");
        if (roles.Count == 0)
            throw Invalid("it holds no layer; a KV dump has tensors 'key' and 'value', or 'layers.0.key' and 'layers.0.value' and so on.");

        foreach (var (index, layer) in roles)
        {
            string prefix = numbered ? $"layers.{index}." : "";
            foreach (string role in (ReadOnlySpan<string>)[Key, Value])
                if (!layer.ContainsKey(role))
                    throw Invalid($"tensor '{prefix}{role}' is missing; a dump for compression has the key and value of every layer. It has {string.Join(", ", layer.Values)}.");
        }
        var firstKey = roles.First().Value[Key];
        var firstExtent = Measure(firstKey);
        CuSeqlens = ReadCuSeqlens(firstKey, firstExtent);
        Layers = [.. roles.Select(layer => ReadLayer(layer.Key, layer.Value, firstKey, firstExtent))];
        Phi = ReadPhi();
        CosSin = ReadCosSin(firstExtent);
    }

    /// <summary>The file.</summary>
    public SafetensorsFile File { get; }

    /// <summary>How the cache tensors are laid out.</summary>
    public KvLayout Layout { get; }

    /// <summary><c>[B+1]</c> packed offsets of the sequences: from <c>cu_seqlens</c>, from the batch, or one sequence.</summary>
    public IReadOnlyList<int> CuSeqlens { get; }

    /// <summary>The layers by ascending index, at least one.</summary>
    public IReadOnlyList<KvDumpLayer> Layers { get; }

    /// <summary>
    /// The dump's sketch, row-major <c>[D, k]</c> or <c>[B, Hkv, D, k]</c>, and its columns k, as <see cref="Sketch.FromValues"/> takes them;
    /// null when the dump has none.
    /// </summary>
    public (float[] Values, int Columns)? Phi { get; }

    /// <summary>
    /// Rotary tables, <c>[N, R/2]</c> each with one row a packed token, and the rotary dimension R, as <see cref="RotaryEmbedding.FromTables"/>
    /// takes them; null when the dump has none. In the file they may be <c>[N, W]</c>, <c>[1, N, W]</c> or, with
    /// <see cref="KvLayout.BatchHeadSequence"/>, <c>[S, W]</c>, <c>[1, S, W]</c> or <c>[B, S, W]</c>. Tables whose rows repeat their first half
    /// (as Hugging Face makes them for half rotation) have W = R and are halved here; others have W = R/2.
    /// </summary>
    public (float[] Cos, float[] Sin, int RotaryDim)? CosSin { get; }

    /// <summary>Names of tensors that no layer uses, sorted.</summary>
    public IReadOnlyList<string> UnusedTensors { get; }

    /// <summary>Opens a dump and checks every shape.</summary>
    /// <param name="path">Path of a safetensors file.</param>
    /// <param name="layout">How its cache tensors are laid out; the file does not say.</param>
    /// <exception cref="CompactorException">
    /// <see cref="CompactorStatus.InvalidFile"/>: the file is malformed, lacks a tensor, or has shapes that do not fit each other;
    /// <see cref="CompactorStatus.Unsupported"/>: key and value dimensions differ (MLA), or a type or head dimension is not served.
    /// The message names the tensor and both shapes.
    /// </exception>
    public static KvDump Open(string path, KvLayout layout = KvLayout.PackedTokens)
    {
        if (layout is not (KvLayout.PackedTokens or KvLayout.BatchHeadSequence))
            throw CompactorException.Argument($"There is no layout {(int)layout}; use a named member of {nameof(KvLayout)}.");
        return Of(SafetensorsFile.Open(path), layout);
    }

    /// <summary>Takes over an open file, and disposes it when it is refused.</summary>
    internal static KvDump Of(SafetensorsFile file, KvLayout layout)
    {
        try
        {
            return new KvDump(file, layout);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Closes the file; all views into it become invalid.</summary>
    public void Dispose() => File.Dispose();

    private static (int? Index, string Role)? Role(string name)
    {
        if (name is Key or Value or KeyPreRope or Query or ProbeQuery)
            return (null, name);
        return name.Split('.') is ["layers", var text, (Key or Value or KeyPreRope or Query or ProbeQuery) and var role]
            && int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int index)
            && text == index.ToString(CultureInfo.InvariantCulture)
            ? (index, role)
            : null;
    }

    private KvDumpLayer ReadLayer(int index, Dictionary<string, SafetensorsTensor> tensors, SafetensorsTensor firstKey, Extent firstExtent)
    {
        SafetensorsTensor key = tensors[Key], value = tensors[Value];
        var extent = Measure(key);
        if (extent.Batch != firstExtent.Batch || extent.Tokens != firstExtent.Tokens)
            throw Invalid($"{Describe(key)} and {Describe(firstKey)} hold different tokens; all layers must hold the same.");
        var valueExtent = Measure(value);
        if (valueExtent.Dim != extent.Dim)
            throw CompactorException.Unsupported(
                $"{File.Path}: {Describe(value)} has dimension {valueExtent.Dim} and {Describe(key)} {extent.Dim}; caches whose key and value dimensions differ (MLA) are not supported.");
        if (value.Type != key.Type)
            throw CompactorException.Unsupported($"{File.Path}: {Describe(value)} and {Describe(key)} differ in type; store both alike.");
        Match(value, valueExtent, extent);
        TensorView? keyPreRope = null, query = null, probeQuery = null;
        if (tensors.TryGetValue(KeyPreRope, out var keyPreRopeTensor))
        {
            var keyPreRopeExtent = Measure(keyPreRopeTensor);
            Match(keyPreRopeTensor, keyPreRopeExtent, extent);
            keyPreRope = View(keyPreRopeTensor, keyPreRopeExtent);
        }
        int queryHeads = 0;
        if (tensors.TryGetValue(Query, out var queryTensor))
        {
            var queryExtent = Measure(queryTensor);
            CheckGroups(queryTensor, queryExtent);
            Match(queryTensor, queryExtent, extent with { Heads = queryExtent.Heads });
            query = View(queryTensor, queryExtent);
            queryHeads = queryExtent.Heads;
        }
        if (tensors.TryGetValue(ProbeQuery, out var probeTensor))
        {
            var probeExtent = Measure(probeTensor);
            CheckGroups(probeTensor, probeExtent);
            Match(probeTensor, probeExtent, extent with { Tokens = probeExtent.Tokens, Heads = query is null ? probeExtent.Heads : queryHeads });
            probeQuery = View(probeTensor, probeExtent);
        }

        LayerShape shape;
        try
        {
            shape = new LayerShape(CuSeqlens, queryHeads, extent.Heads, extent.Dim, key.Type.ToElementType()!.Value) { Layer = index };
        }
        catch (CompactorException e)
        {
            throw new CompactorException(e.Status is CompactorStatus.Unsupported ? e.Status : CompactorStatus.InvalidFile, $"{File.Path}: {Describe(key)}: {e.Message}", e);
        }
        var inputs = new LayerInputs { Key = View(key, extent), Value = View(value, valueExtent), KeyPreRope = keyPreRope, Query = query };
        return new KvDumpLayer(shape, inputs, probeQuery, tensors);

        void Match(SafetensorsTensor tensor, Extent actual, Extent wanted)
        {
            if (actual != wanted)
                throw Invalid($"{Describe(tensor)} does not fit {Describe(key)}; expected {SafetensorsHeader.Show(wanted.Shape(Layout))}.");
        }

        void CheckGroups(SafetensorsTensor tensor, Extent actual)
        {
            if (actual.Heads % extent.Heads != 0)
                throw Invalid($"{Describe(tensor)} has {actual.Heads} heads and {Describe(key)} {extent.Heads}; query heads must be a multiple of KV heads.");
        }
    }

    private Extent Measure(SafetensorsTensor tensor)
    {
        bool packed = Layout == KvLayout.PackedTokens;
        if (tensor.Shape.Count != (packed ? 3 : 4))
        {
            string hint = tensor.Shape.Count == (packed ? 4 : 3) ? $" Open the dump with layout {(packed ? "bhsd" : "nhd")} if that is its layout." : "";
            throw Invalid($"{Describe(tensor)} has {tensor.Shape.Count} dimensions; expected {(packed ? "[N, H, D]" : "[B, H, S, D]")}.{hint}");
        }
        if (tensor.Type.ToElementType() is null)
            throw CompactorException.Unsupported($"{File.Path}: {Describe(tensor)} is not a type that scoring takes; store it as F32, F16 or BF16.");
        long batch = packed ? 1 : tensor.Shape[0], tokens = tensor.Shape[packed ? 0 : 2], heads = tensor.Shape[1], dim = tensor.Shape[^1];
        if (batch == 0 || heads == 0 || dim == 0 || !packed && tokens == 0)
            throw Invalid($"{Describe(tensor)} has a dimension of 0{(packed ? "; only the tokens of a packed dump may be 0" : "")}.");
        if (batch > int.MaxValue || tokens > int.MaxValue || heads > int.MaxValue || dim > int.MaxValue || batch * tokens > int.MaxValue)
            throw CompactorException.Unsupported($"{File.Path}: {Describe(tensor)} exceeds {int.MaxValue} tokens, heads or dimensions; split it.");
        return new Extent((int)batch, (int)tokens, (int)heads, (int)dim);
    }

    private TensorView View(SafetensorsTensor tensor, Extent extent) => Layout == KvLayout.PackedTokens
        ? TensorView.Packed(tensor.Address, tensor.Type.ToElementType()!.Value, extent.Tokens, extent.Heads, extent.Dim)
        : TensorView.BatchHeadSequence(tensor.Address, tensor.Type.ToElementType()!.Value, extent.Batch, extent.Heads, extent.Tokens, extent.Dim);

    private int[] ReadCuSeqlens(SafetensorsTensor key, Extent extent)
    {
        int[]? implied = Layout == KvLayout.PackedTokens ? null : [.. Enumerable.Range(0, extent.Batch + 1).Select(b => b * extent.Tokens)];
        if (!File.Tensors.TryGetValue(CuSeqlensName, out var tensor))
            return implied ?? [0, extent.Tokens];
        if (tensor.Type is not SafetensorsType.I32 || tensor.Shape.Count != 1 || tensor.Shape[0] < 2)
            throw Invalid($"{Describe(tensor)} must be I32 [B + 1], with one entry more than there are sequences.");
        int[] given = tensor.ToInt32();
        if (given[0] != 0)
            throw Invalid($"{Describe(tensor)} starts with {given[0]}; it must start with 0.");
        for (int b = 1; b < given.Length; b++)
            if (given[b] < given[b - 1])
                throw Invalid($"{Describe(tensor)} falls from {given[b - 1]} to {given[b]} at entry {b}; entries must ascend.");
        if (implied is not null && !given.AsSpan().SequenceEqual(implied))
            throw Invalid($"{Describe(tensor)} differs from the equal lengths of {Describe(key)}, whose sequences cannot be padded; store it packed.");
        if (given[^1] != (long)extent.Batch * extent.Tokens)
            throw Invalid($"{Describe(tensor)} ends at {given[^1]} tokens, but {Describe(key)} holds {extent.Tokens}; both must agree.");
        return given;
    }

    private (float[] Values, int Columns)? ReadPhi()
    {
        if (!File.Tensors.TryGetValue(PhiName, out var phi))
            return null;
        CheckFloat(phi);
        foreach (var layer in Layers)
        {
            var shape = layer.Shape;
            long[] leading = phi.Shape.Count == 4 ? [shape.Sequences, shape.KvHeads, shape.HeadDim] : [shape.HeadDim];
            if (phi.Shape.Count is not (2 or 4) || !phi.Shape.SkipLast(1).SequenceEqual(leading) || phi.Shape[^1] is 0 or > int.MaxValue)
                throw Invalid($"{Describe(phi)} does not fit {Describe(layer.Tensors[Key])}; expected [{shape.HeadDim}, k] or [{shape.Sequences}, {shape.KvHeads}, {shape.HeadDim}, k].");
        }
        return (phi.ToFloat32(), (int)phi.Shape[^1]);
    }

    private (float[] Cos, float[] Sin, int RotaryDim)? ReadCosSin(Extent extent)
    {
        File.Tensors.TryGetValue(CosName, out var cosTensor);
        File.Tensors.TryGetValue(SinName, out var sinTensor);
        if (cosTensor is null && sinTensor is null)
            return null;
        if (cosTensor is null || sinTensor is null)
            throw Invalid($"tensor '{(cosTensor is null ? CosName : SinName)}' is missing; rotary tables come as cos and sin.");
        CheckFloat(cosTensor);
        CheckFloat(sinTensor);
        if (!cosTensor.Shape.SequenceEqual(sinTensor.Shape))
            throw Invalid($"{Describe(cosTensor)} and {Describe(sinTensor)} differ in shape.");

        int headDim = Layers.Min(layer => layer.Shape.HeadDim);
        long width = cosTensor.Shape.Count > 0 ? cosTensor.Shape[^1] : 0;
        bool covered = cosTensor.Shape.SkipLast(1).ToArray() switch
        {
            [var tokens] => tokens == extent.Tokens,
            [var batch, var tokens] => tokens == extent.Tokens && (batch == 1 || batch == extent.Batch),
            _ => false,
        };
        if (!covered || width < 1 || width > headDim)
            throw Invalid($"{Describe(cosTensor)} does not fit {Describe(Layers[0].Tensors[Key])}; expected a row of at most {headDim} for each of {extent.Tokens} tokens.");
        float[] cos = cosTensor.ToFloat32(), sin = sinTensor.ToFloat32();
        int columns = (int)width;
        if (RepeatsHalves(cos, columns) && RepeatsHalves(sin, columns))
        {
            (cos, sin) = (FirstHalves(cos, columns), FirstHalves(sin, columns));
            columns /= 2;
        }
        if (2 * columns > headDim)
            throw Invalid(
                $"{Describe(cosTensor)} holds {columns} pairs, more than head dimension {headDim} has, and its rows do not repeat their first half; store [N, R/2] tables with one column a pair.");
        if (cosTensor.Shape.Count == 2 || cosTensor.Shape[0] == 1)
        {
            if ((long)extent.Batch * cos.Length > Array.MaxLength)
                throw CompactorException.Unsupported($"{File.Path}: {Describe(cosTensor)} for {extent.Batch} sequences exceeds an array; split the batch.");
            (cos, sin) = (Tile(cos, extent.Batch), Tile(sin, extent.Batch));
        }
        return (cos, sin, 2 * columns);
    }

    private static bool RepeatsHalves(float[] table, int columns)
    {
        if (int.IsOddInteger(columns))
            return false;
        for (int row = 0; row < table.Length; row += columns)
            if (!table.AsSpan(row, columns / 2).SequenceEqual(table.AsSpan(row + columns / 2, columns / 2)))
                return false;
        return true;
    }

    private static float[] FirstHalves(float[] table, int columns)
    {
        var halves = new float[table.Length / 2];
        for (int row = 0; row < table.Length; row += columns)
            table.AsSpan(row, columns / 2).CopyTo(halves.AsSpan(row / 2));
        return halves;
    }

    private static float[] Tile(float[] table, int times)
    {
        var tiled = new float[table.Length * times];
        for (int i = 0; i < times; i++)
            table.CopyTo(tiled.AsSpan(i * table.Length));
        return tiled;
    }

    private void CheckFloat(SafetensorsTensor tensor)
    {
        if (tensor.Type is not (SafetensorsType.F64 or SafetensorsType.F32 or SafetensorsType.F16 or SafetensorsType.BF16))
            throw Invalid($"{Describe(tensor)} must hold floats: F32, F16, BF16 or F64.");
    }

    private static string Describe(SafetensorsTensor tensor) =>
        $"{SafetensorsHeader.Quote(tensor.Name)} ({tensor.Type} {SafetensorsHeader.Show(tensor.Shape)})";

    private CompactorException Invalid(string problem) => new(CompactorStatus.InvalidFile, $"{File.Path}: {problem}");

    /// <summary>A cache tensor's dimensions whatever its layout; <paramref name="Tokens"/> are those of one batch entry, and a packed tensor has one.</summary>
    private readonly record struct Extent(int Batch, int Tokens, int Heads, int Dim)
    {
        public IEnumerable<long> Shape(KvLayout layout) => layout == KvLayout.PackedTokens ? [Tokens, Heads, Dim] : [Batch, Heads, Tokens, Dim];
    }
}
