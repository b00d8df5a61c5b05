using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native;

/// <summary>
/// The operations on one kind of memory, second part: what moves tokens into, inside and out of a paged cache. Rows of tables, lengths and offsets are (sequence, KV head)
/// pairs, sequence by sequence: row <c>b·Hkv + h</c>. All are queued; none reads a table, count or index on the calling thread. Element types do not matter: rows of D elements are copied as bytes.
/// Blocks, slots and indices must be in range: they come from a <see cref="PagedCache"/> and from <see cref="Select"/>, and are not checked again.
/// </summary>
public abstract partial class KvBackend
{
    /// <summary>Allocates host memory that <see cref="Download"/> may write while the host goes on (page-locked, on a GPU).</summary>
    /// <typeparam name="T">Element type.</typeparam>
    /// <param name="length">Elements, 0 or more.</param>
    public abstract BackendBuffer<T> AllocateHost<T>(long length) where T : unmanaged;

    /// <summary>Queues a copy from host memory. The source has been read when this returns.</summary>
    /// <param name="source">Host memory.</param>
    /// <param name="destination">Backend memory of the same length.</param>
    public abstract void Upload<T>(ReadOnlySpan<T> source, BufferView<T> destination) where T : unmanaged;

    /// <summary>Queues a copy to host memory, which may be read once an event recorded afterwards has passed.</summary>
    /// <param name="source">Backend memory.</param>
    /// <param name="destination">From <see cref="AllocateHost"/>, of the same length.</param>
    public abstract void Download<T>(BufferView<T> source, BufferView<T> destination) where T : unmanaged;

    /// <summary>An event that passes when all that is queued now is done.</summary>
    public abstract BackendEvent Record();

    /// <summary>
    /// Stores tokens in every head: slot i of those a row gets holds token i, <c>key[b, first + i, h]</c>, at position <c>firstPosition + i</c>.
    /// </summary>
    /// <param name="slots">The cache.</param>
    /// <param name="key">Keys after RoPE, <c>[N, Hkv, D]</c>, packed or padded.</param>
    /// <param name="value">Values, <c>[N, Hkv, D]</c>.</param>
    /// <param name="tokens">Which tokens of each of the B sequences.</param>
    /// <param name="counts"><c>[B]</c> tokens to store.</param>
    /// <param name="mostTokens">The largest count: bounds the launch.</param>
    /// <param name="targets">Where they go; no blocks are dealt.</param>
    public abstract void StoreTokens(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens, BufferView<int> counts, int mostTokens, PagedTargets targets);

    /// <summary>
    /// Stores survivors: slot i of those a row gets holds token <c>t = keptIndices[keptOffsets[row] + i]</c>, <c>key[b, first + t, h]</c>, at position <c>firstPosition + t</c>.
    /// </summary>
    /// <param name="slots">The cache.</param>
    /// <param name="key">Keys after RoPE, <c>[N, Hkv, D]</c>, packed or padded.</param>
    /// <param name="value">Values, <c>[N, Hkv, D]</c>.</param>
    /// <param name="tokens">Where each sequence's token 0 is, and its position.</param>
    /// <param name="keptIndices">Tokens within their sequences, from <see cref="Select"/>.</param>
    /// <param name="keptOffsets"><c>[B·Hkv + 1]</c>, from <see cref="Select"/>.</param>
    /// <param name="targets">Where they go; blocks beyond those listed are dealt to heads from the reserved ones, which must suffice.</param>
    public abstract void StoreSurvivors(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens,
        BufferView<int> keptIndices, BufferView<int> keptOffsets, PagedTargets targets);

    /// <summary>
    /// Moves survivors into other blocks of the cache, with their positions: slot i of those a row gets holds slot <c>keptSlots[keptOffsets[row] + i]</c> of the old table.
    /// </summary>
    /// <param name="slots">The cache.</param>
    /// <param name="from">Old tables and lengths.</param>
    /// <param name="keptSlots">Slots of the old tables, ascending per row.</param>
    /// <param name="keptOffsets"><c>[B·Hkv + 1]</c>: where each row's slots start.</param>
    /// <param name="targets">Where they go: blocks dealt to heads from the reserved ones, none of which is in an old table.</param>
    public abstract void MoveSurvivors(in PagedSlots slots, PagedTables from, BufferView<int> keptSlots, BufferView<int> keptOffsets, PagedTargets targets);

    /// <summary>Copies the first slots of blocks, with their positions: what a fork copies of partial last blocks.</summary>
    /// <param name="slots">The cache.</param>
    /// <param name="from"><c>[n]</c> blocks to copy.</param>
    /// <param name="to"><c>[n]</c> blocks to fill, all different and none in <paramref name="from"/>.</param>
    /// <param name="counts"><c>[n]</c> slots of each block to copy.</param>
    public abstract void CopyBlocks(in PagedSlots slots, BufferView<int> from, BufferView<int> to, BufferView<int> counts);

    /// <summary>
    /// Moves survivors to the front of the blocks they are in, in a cache that its host owns, of any strides, with one table for all heads of a sequence.
    /// Slots ascend, so that no row is overwritten before it is read, if each (sequence, head) goes in order.
    /// </summary>
    /// <param name="cache">Keys and values, NHD or HND.</param>
    /// <param name="kvHeads">KV heads Hkv.</param>
    /// <param name="tables"><c>[B, rowStride]</c> block ids.</param>
    /// <param name="rowStride">Entries from one sequence's table to the next.</param>
    /// <param name="keptSlots">Slots that survive, ascending per (sequence, head).</param>
    /// <param name="keptOffsets"><c>[B·Hkv + 1]</c>: where each row's slots start.</param>
    public abstract void CompactInPlace(in PagedView cache, int kvHeads, BufferView<int> tables, int rowStride, BufferView<int> keptSlots, BufferView<int> keptOffsets);

    /// <summary>Gathers what rows of tables hold into dense memory.</summary>
    /// <param name="slots">The cache.</param>
    /// <param name="tables">Tables and lengths of any number of rows, each of one head.</param>
    /// <param name="offsets"><c>[rows]</c> where each row starts in the outputs, in slots.</param>
    /// <param name="keys">Receives <c>[slots, D]</c> as bytes.</param>
    /// <param name="values">Receives <c>[slots, D]</c> as bytes.</param>
    /// <param name="positions">Receives <c>[slots]</c>.</param>
    public abstract void GatherSlots(in PagedSlots slots, PagedTables tables, BufferView<int> offsets, BufferView<byte> keys, BufferView<byte> values, BufferView<int> positions);

    /// <summary>
    /// Outlier scores of a cache that holds its keys already: <see cref="Leverage"/> over the slots of every (sequence, head), each with its own length, chunks and statistics.
    /// </summary>
    /// <param name="plan">A ragged plan, whose lengths are those of <paramref name="tables"/>.</param>
    /// <param name="slots">The cache; its element type is one that can be scored.</param>
    /// <param name="tables">Tables and lengths, <c>[B·Hkv]</c> rows.</param>
    /// <param name="undo">The rotation that keys carry, undone with the position stored for each slot: by its frequencies, or row p of its tables for position p. Null for keys without.</param>
    /// <param name="positionEnd">A position above every stored one.</param>
    /// <param name="sketch">Phi, one or <c>[B, Hkv]</c>.</param>
    /// <param name="leverage">Receives <c>[pairs]</c>, row by row; 0 for slots that are not scored.</param>
    /// <exception cref="CompactorException">A key is not finite (the message names layer, slot and head), or no factorisation exists.</exception>
    public abstract void LeverageOfSlots(LayerPlan plan, in PagedSlots slots, PagedTables tables, RotaryEmbedding? undo, int positionEnd, Sketch sketch, BufferView<float> leverage);
}

/// <summary>The memory of a paged cache of head-blocks.</summary>
/// <param name="Cache">Keys and values, blocks of one head.</param>
/// <param name="Positions"><c>[blocks, block_size]</c> position of every slot.</param>
public readonly record struct PagedSlots(PagedView Cache, BufferView<int> Positions);

/// <summary>Runs of tokens of B sequences in key and value tensors.</summary>
/// <param name="First"><c>[B]</c> index in the packed batch of each sequence's token 0; not read of a padded tensor, where it is token 0 of sequence b.</param>
/// <param name="FirstPosition"><c>[B]</c> position of each sequence's token 0.</param>
public readonly record struct TokenRuns(BufferView<int> First, BufferView<int> FirstPosition);

/// <summary>
/// Where the new slots of a batch's heads are. Row r's new slot i is slot <c>Starts[r] + i</c> of the blocks it lists; beyond its <c>Listed[r]</c> blocks, of blocks dealt
/// to it. Head h of sequence b is dealt <c>need(h) = max(0, ceil((Starts + count) / block_size) - Listed)</c> blocks, the reserved ones of the sequence in order from
/// <c>ReservedStarts[b] + need(0) + ... + need(h - 1)</c> on: a scan over the counts of its heads, which the host repeats when it knows them.
/// </summary>
/// <param name="KvHeads">KV heads Hkv.</param>
/// <param name="Blocks"><c>[B·Hkv, RowStride]</c> blocks that have room, from the one with the first free slot on.</param>
/// <param name="RowStride">Entries from one row to the next.</param>
/// <param name="Listed"><c>[B·Hkv]</c> blocks listed in each row.</param>
/// <param name="Starts"><c>[B·Hkv]</c> slots already used in the first of them (or, with none listed, 0).</param>
/// <param name="Reserved">Blocks to deal, sequence by sequence.</param>
/// <param name="ReservedStarts"><c>[B]</c> where each sequence's start.</param>
public readonly record struct PagedTargets(
    int KvHeads, BufferView<int> Blocks, int RowStride, BufferView<int> Listed, BufferView<int> Starts, BufferView<int> Reserved, BufferView<int> ReservedStarts)
{
    /// <summary>Rows.</summary>
    public int Rows => (int)Starts.Length;

    /// <summary>Blocks that a row is dealt.</summary>
    internal static int Dealt(int start, int count, int listed, int blockSize) => Math.Max(0, (int)(((long)start + count + blockSize - 1) / blockSize) - listed);
}
