using Compactor.Native.Compression;

namespace Compactor.Native.Paging;

/// <summary>Shape of a paged cache.</summary>
public sealed record PagedCacheOptions
{
    internal const int DefaultBlockSize = 128;

    // every sequence holds a row of blocks for each of them, in host memory
    private const int MaxRows = 1 << 20;

    /// <summary>Layers.</summary>
    public required int Layers { get; init; }

    /// <summary>KV heads Hkv of a layer.</summary>
    public required int KvHeads { get; init; }

    /// <summary>Head dimension D of keys and values.</summary>
    public required int HeadDim { get; init; }

    /// <summary>Element type of keys and values.</summary>
    public required ElementType ElementType { get; init; }

    /// <summary>Head-blocks in the pool; each takes 2 · BlockSize · D elements and BlockSize positions.</summary>
    public required int Blocks { get; init; }

    /// <summary>Tokens of a head-block: 16 to 256.</summary>
    public int BlockSize { get; init; } = DefaultBlockSize;

    /// <summary>Bytes of keys and values of one head-block.</summary>
    public long BlockBytes => 2L * BlockSize * HeadDim * ElementType.Size();

    /// <summary>Checks every option.</summary>
    /// <exception cref="CompactorException">An option is out of range; the message names it.</exception>
    public void Validate()
    {
        Check(nameof(Layers), Layers, 1, 65535);
        Check(nameof(KvHeads), KvHeads, 1, 65535);
        if ((long)Layers * KvHeads > MaxRows)
            throw CompactorException.Argument($"{Layers} layers of {KvHeads} KV heads are {(long)Layers * KvHeads} block rows a sequence; use at most {MaxRows}.");
        Check(nameof(HeadDim), HeadDim, 1, LayerShape.MaxHeadDim);
        Check(nameof(BlockSize), BlockSize, 16, 256);
        Check(nameof(Blocks), Blocks, 0, int.MaxValue / BlockSize);
        if (!Enum.IsDefined(ElementType))
            throw CompactorException.Argument($"ElementType is {ElementType}; use one of {string.Join(", ", Enum.GetNames<ElementType>())}.");

        static void Check(string name, int value, int low, int high)
        {
            if (value < low || value > high)
                throw CompactorException.Argument($"{name} is {value}; use {low} to {high}.");
        }
    }
}
