namespace Compactor.Native.Compression;

/// <summary>Shape of one layer's cache for a packed batch of sequences.</summary>
public sealed record LayerShape
{
    /// <summary>Smallest and largest head dimension D; D is a multiple of 16.</summary>
    public const int MinHeadDim = 16, MaxHeadDim = 256;

    /// <summary>Most query heads that may share a KV head.</summary>
    public const int MaxGroup = 16;

    /// <summary>What fits the 16 bits that a layer and a head have in the key of Phi, where 0 stands for none.</summary>
    private const int MaxKey = 65535;

    /// <summary>Creates and checks a shape.</summary>
    /// <param name="cuSeqlens">
    /// <c>[B+1]</c>, ascending from 0: sequence b holds tokens <c>cuSeqlens[b]</c> to <c>cuSeqlens[b+1]</c> of the packed batch.
    /// </param>
    /// <param name="queryHeads">Query heads Hq, a multiple of <paramref name="kvHeads"/>; 0 when no queries are given.</param>
    /// <param name="kvHeads">KV heads Hkv.</param>
    /// <param name="headDim">Head dimension D, shared by keys and values.</param>
    /// <param name="elementType">Element type of keys and values.</param>
    /// <exception cref="CompactorException">A value is out of range.</exception>
    public LayerShape(IReadOnlyList<int> cuSeqlens, int queryHeads, int kvHeads, int headDim, ElementType elementType)
    {
        if (cuSeqlens.Count < 1 || cuSeqlens[0] != 0)
            throw CompactorException.Argument("cu_seqlens must start with 0 and have one entry more than there are sequences.");
        for (int b = 1; b < cuSeqlens.Count; b++)
            if (cuSeqlens[b] < cuSeqlens[b - 1])
                throw CompactorException.Argument($"cu_seqlens[{b}] is {cuSeqlens[b]}, below cu_seqlens[{b - 1}] = {cuSeqlens[b - 1]}; entries must ascend.");
        if (kvHeads is < 1 or > MaxKey)
            throw CompactorException.Argument($"There are {kvHeads} KV heads; use 1 to {MaxKey}.");
        if (queryHeads < 0 || queryHeads % kvHeads != 0)
            throw CompactorException.Argument($"{queryHeads} query heads cannot be shared evenly by {kvHeads} KV heads; the first must be a multiple of the second.");
        if (queryHeads / kvHeads > MaxGroup)
            throw CompactorException.Unsupported($"{queryHeads / kvHeads} query heads share a KV head; at most {MaxGroup} are supported.");
        if (headDim < MinHeadDim || headDim > MaxHeadDim || headDim % 16 != 0)
            throw CompactorException.Unsupported($"Head dimension {headDim} is not supported; use {MinHeadDim} to {MaxHeadDim} in steps of 16.");
        if (elementType == ElementType.Opaque8)
            throw CompactorException.Unsupported("Keys and values of opaque bytes cannot be scored or attended to; convert them to float32, float16 or bfloat16 first.");
        if ((long)cuSeqlens[^1] * kvHeads > int.MaxValue)
            throw CompactorException.Unsupported($"{cuSeqlens[^1]} tokens of {kvHeads} heads exceed {int.MaxValue} (token, head) pairs; split the batch.");
        if ((cuSeqlens.Count - 1L) * kvHeads >= int.MaxValue)
            throw CompactorException.Unsupported($"{cuSeqlens.Count - 1} sequences of {kvHeads} heads exceed {int.MaxValue - 1} (sequence, head) pairs; split the batch.");
        CuSeqlens = [.. cuSeqlens];
        QueryHeads = queryHeads;
        KvHeads = kvHeads;
        HeadDim = headDim;
        ElementType = elementType;
    }

    /// <summary>Shape of a layer whose heads hold different numbers of tokens, as a compressed cache does.</summary>
    /// <param name="lengths"><c>[B·Hkv]</c> slots of each head, sequence by sequence.</param>
    /// <param name="kvHeads">KV heads Hkv.</param>
    /// <param name="headDim">Head dimension D, shared by keys and values.</param>
    /// <param name="elementType">Element type of keys and values.</param>
    /// <exception cref="CompactorException">A value is out of range, or the lengths are not those of whole sequences.</exception>
    public static LayerShape Ragged(IReadOnlyList<int> lengths, int kvHeads, int headDim, ElementType elementType)
    {
        if (kvHeads is < 1 or > MaxKey || lengths.Count % kvHeads != 0)
            throw CompactorException.Argument($"There are {lengths.Count} lengths for {kvHeads} KV heads; give one a (sequence, head).");
        var offsets = new int[lengths.Count + 1];
        for (int i = 0; i < lengths.Count; i++)
        {
            if (lengths[i] < 0 || lengths[i] > int.MaxValue - offsets[i])
                throw CompactorException.Argument($"Length {lengths[i]} of sequence {i / kvHeads}, head {i % kvHeads} is negative, or exceeds {int.MaxValue} pairs in all.");
            offsets[i + 1] = offsets[i] + lengths[i];
        }
        return new LayerShape(offsets, 0, 1, headDim, elementType) { IsRagged = true, KvHeads = kvHeads };
    }

    /// <summary>
    /// Whether heads have lengths of their own. Scores and indices then run head by head, <c>[pairs]</c>, and slots of a head take the place of tokens.
    /// </summary>
    public bool IsRagged { get; private init; }

    /// <summary><c>[B+1]</c> packed offsets of the sequences; <c>[B·Hkv+1]</c> of their heads, in pairs, where ragged.</summary>
    public IReadOnlyList<int> CuSeqlens { get; }

    /// <summary>Query heads Hq; 0 when no queries are given.</summary>
    public int QueryHeads { get; }

    /// <summary>KV heads Hkv.</summary>
    public int KvHeads { get; private init; }

    /// <summary>Head dimension D.</summary>
    public int HeadDim { get; }

    /// <summary>Element type of keys and values.</summary>
    public ElementType ElementType { get; }

    /// <summary>Sequences B.</summary>
    public int Sequences => IsRagged ? (CuSeqlens.Count - 1) / KvHeads : CuSeqlens.Count - 1;

    /// <summary>Tokens of all sequences; where ragged, of all their heads.</summary>
    public int Tokens => CuSeqlens[^1];

    /// <summary>(token, head) pairs of all sequences.</summary>
    public int Pairs => IsRagged ? CuSeqlens[^1] : CuSeqlens[^1] * KvHeads;

    /// <summary>Query heads G that share a KV head; 0 when no queries are given.</summary>
    public int Group => QueryHeads / KvHeads;

    /// <summary>Bytes of one token's key and value in one head.</summary>
    public long BytesPerPair => 2L * HeadDim * ElementType.Size();

    /// <summary>Index of the layer, 0 to 65534: names it in errors and keys its Phi.</summary>
    /// <exception cref="CompactorException">The index is out of range.</exception>
    public int Layer
    {
        get;
        init => field = value is >= 0 and < MaxKey ? value : throw CompactorException.Argument($"Layer is {value}; use 0 to {MaxKey - 1}, which the key of Phi holds.");
    }

    /// <summary>Global index of head 0, for a rank that holds a part of the heads: keys Phi. The last head's is 65534 at most.</summary>
    /// <exception cref="CompactorException">The index is out of range.</exception>
    public int FirstHead
    {
        get;
        init => field = value >= 0 && value <= MaxKey - KvHeads ? value
            : throw CompactorException.Argument($"FirstHead is {value}; with {KvHeads} KV heads use 0 to {MaxKey - KvHeads}, which the key of Phi holds.");
    }

    /// <summary>Stable ids of the sequences, which key their Phi; null for 0, 1, 2, ...</summary>
    /// <exception cref="CompactorException">There is not one id a sequence.</exception>
    public IReadOnlyList<long>? SequenceIds
    {
        get;
        init => field = value is null || value.Count == Sequences ? value is null ? null : [.. value]
            : throw CompactorException.Argument($"There are {value.Count} SequenceIds for {Sequences} sequences; give one a sequence, or null.");
    }

    /// <summary>Tokens of sequence <paramref name="b"/>; of entry <paramref name="b"/> of the lengths, where ragged.</summary>
    public int LengthOf(int b) => CuSeqlens[b + 1] - CuSeqlens[b];

    /// <summary>Tokens of one head of sequence <paramref name="b"/>.</summary>
    public int LengthOf(int b, int head) => LengthOf(IsRagged ? b * KvHeads + head : b);

    /// <summary>Pairs of sequence <paramref name="b"/>.</summary>
    public int PairsOf(int b) => IsRagged ? CuSeqlens[(b + 1) * KvHeads] - CuSeqlens[b * KvHeads] : LengthOf(b) * KvHeads;

    /// <summary>Stable id of sequence <paramref name="b"/>.</summary>
    public long IdOf(int b) => SequenceIds is null ? b : SequenceIds[b];
}
