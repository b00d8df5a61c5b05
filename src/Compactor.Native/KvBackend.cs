using Compactor.Native.Compression;
using Compactor.Native.Cuda;
using Compactor.Native.Paging;

namespace Compactor.Native;

/// <summary>
/// The operations of the method on one kind of memory. Each is a pure function of tensors, a plan and a sketch; scores are float32
/// <c>[N, Hkv]</c>, token-major. Operations are queued in the order they are called, on the one queue (stream) of the backend: they may return before they are done,
/// and what is read on the host waits for a <see cref="BackendEvent"/>. Scoring may be used by one caller at a time; memory, copies, events and
/// what moves tokens of a paged cache by several at once.
/// </summary>
public abstract partial class KvBackend : IDisposable
{
    /// <summary>Short name: <c>cpu</c> or <c>cuda</c>.</summary>
    public abstract string Name { get; }

    /// <summary>What it runs on, for people.</summary>
    public abstract string Description { get; }

    /// <summary>Whether the memory it reaches is the host's, so that policies may read and write it directly.</summary>
    public virtual bool IsHostMemory => false;

    /// <summary>
    /// Allocates memory this backend can reach, released by disposing it. Memory released is not given to anyone before the work queued so far is done, so
    /// a buffer may be disposed as soon as the last operation that uses it is queued.
    /// </summary>
    /// <typeparam name="T">Element type.</typeparam>
    /// <param name="length">Elements, 0 or more.</param>
    public abstract BackendBuffer<T> Allocate<T>(long length) where T : unmanaged;

    /// <summary>
    /// Does ahead what the first compression of a plan would: compiles kernels, uploads tables, sketches and rotations, and makes room for scratch. Afterwards scoring, selection and
    /// compaction with the plan only queue work. Nothing to do for a backend that has none of these.
    /// </summary>
    /// <param name="plan">Shape, options and counts.</param>
    /// <param name="inputs">As they will be given, except for addresses; what is null will not be given.</param>
    /// <param name="sketch">Phi that will be given; null for the plan's.</param>
    public virtual void Prepare(LayerPlan plan, LayerInputs inputs, Sketch? sketch = null) { }

    /// <summary>The same for a ragged plan of slots that a paged cache holds.</summary>
    /// <param name="plan">Shape, options and counts.</param>
    /// <param name="slots">Keys, values and positions.</param>
    /// <param name="undo">The rotation to undo while loading, or null.</param>
    /// <param name="positionEnd">One more than the highest position stored.</param>
    /// <param name="sketch">Phi that will be given; null for the plan's.</param>
    public virtual void PrepareOfSlots(LayerPlan plan, in PagedSlots slots, RotaryEmbedding? undo, int positionEnd, Sketch? sketch = null) { }

    /// <summary>
    /// Outlier scores: <c>o_i = ||L⁻¹ x_i||²</c> with <c>X = (Kp - mean)·Phi</c>, <c>XᵀX + eps·I = L·Lᵀ</c>, per head and leverage chunk.
    /// </summary>
    /// <param name="plan">Shape and options.</param>
    /// <param name="keys">Keys before RoPE, or after it when <paramref name="undo"/> is given; <c>[N, Hkv, D]</c>.</param>
    /// <param name="undo">The rotation to undo while loading, or null.</param>
    /// <param name="sketch">Phi.</param>
    /// <param name="leverage">Receives <c>[N, Hkv]</c>; 0 for tokens that are not scored.</param>
    /// <exception cref="CompactorException">A key is not finite (the message names layer, token and head), or no factorisation exists; where operations are queued, <see cref="TakeStatus"/> tells.</exception>
    public abstract void Leverage(LayerPlan plan, in TensorView keys, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage);

    /// <summary>
    /// Non-causal attention scores: <c>a_j = reduce_g sum_i softmax_j(scale·q_i·k_j)</c> within each attention chunk, after the group reduction,
    /// before value-norm weighting and pooling.
    /// </summary>
    /// <param name="plan">Shape and options.</param>
    /// <param name="query">Queries after RoPE, <c>[N, Hq, D]</c>.</param>
    /// <param name="key">Keys after RoPE, <c>[N, Hkv, D]</c>.</param>
    /// <param name="attention">Receives <c>[N, Hkv]</c>; 0 for tokens that are not scored.</param>
    /// <exception cref="CompactorException">A query or key is not finite (the message names layer, token and head); where operations are queued, <see cref="TakeStatus"/> tells.</exception>
    public abstract void AttentionScores(LayerPlan plan, in TensorView query, in TensorView key, BufferView<float> attention);

    /// <summary>
    /// Fuses <c>s = z(pool(a·||v||)) + lambda·z(o)</c> and sets protected tokens to +inf. With only one of the two scores, <c>s</c> is its z.
    /// A ragged plan takes leverage alone; its scores are <c>[pairs]</c>, head by head, and statistics of a sequence or chunk run over its heads in (slot, head) order.
    /// </summary>
    /// <param name="plan">Shape and options.</param>
    /// <param name="leverage"><c>[N, Hkv]</c>, or null.</param>
    /// <param name="attention"><c>[N, Hkv]</c>, or null.</param>
    /// <param name="value">Values <c>[N, Hkv, D]</c>; read only when options weight by the value norm.</param>
    /// <param name="scores">Receives <c>[N, Hkv]</c>; non-finite scores become the lowest finite value.</param>
    /// <returns>Whether a score was not finite, and the first such; where operations are queued, nothing yet, and <see cref="TakeStatus"/> tells.</returns>
    public abstract FuseStatus Fuse(LayerPlan plan, BufferView<float>? leverage, BufferView<float>? attention, in TensorView value, BufferView<float> scores);

    /// <summary>
    /// Segmented top-k of the plan's scope and counts. Ties go to the lower (token, head); -0 equals 0; NaN ranks lowest.
    /// In a ragged plan the slots of a head take the place of tokens, and scores are <c>[pairs]</c>, head by head.
    /// </summary>
    /// <param name="plan">Shape, scope and counts.</param>
    /// <param name="scores"><c>[N, Hkv]</c>.</param>
    /// <param name="keptIndices">Receives <see cref="LayerPlan.KeptPairs"/> tokens within their sequences, ascending per head, sequence by sequence and head by head.</param>
    /// <param name="keptOffsets">Receives <c>[B·Hkv + 1]</c>: where each head's tokens start.</param>
    public abstract void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets);

    /// <summary>The same, right after <see cref="Fuse"/> with the same plan, from the scores it left: what it has counted of them need not be counted again.</summary>
    internal virtual void SelectFused(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets) =>
        Select(plan, scores, keptIndices, keptOffsets);

    /// <summary>Gathers the survivors of one tensor, in the order of <paramref name="keptIndices"/>.</summary>
    /// <param name="plan">Shape.</param>
    /// <param name="source">Keys or values, <c>[N, Hkv, D]</c>.</param>
    /// <param name="keptIndices">From <see cref="Select"/>.</param>
    /// <param name="keptOffsets">From <see cref="Select"/>.</param>
    /// <param name="destination">Receives <c>[kept pairs, D]</c> in the source's element type, as bytes.</param>
    public abstract void Compact(LayerPlan plan, in TensorView source, BufferView<int> keptIndices, BufferView<int> keptOffsets, BufferView<byte> destination);

    /// <summary>
    /// Attention of one new query token a sequence over the slots its heads hold: <c>out = softmax(scale·q·k)·V</c>. Heads may hold different numbers.
    /// </summary>
    /// <param name="cache">Keys and values.</param>
    /// <param name="query">Queries after RoPE, <c>[B, Hq, D]</c>.</param>
    /// <param name="kvHeads">KV heads Hkv, which divide Hq.</param>
    /// <param name="tables">Block tables and lengths.</param>
    /// <param name="options">Scale, cap, sinks and window.</param>
    /// <param name="output">Receives <c>[B, Hq, D]</c>; zeros for heads that hold nothing that is seen.</param>
    /// <param name="logSumExp">Receives <c>[B, Hq]</c> natural log-sum-exp of the logits and the sink, to merge with other parts, −inf where there is none; or null.</param>
    /// <exception cref="CompactorException">Shapes do not fit each other.</exception>
    public abstract void DecodeAttention(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null);

    /// <summary>
    /// Attention of several new query tokens a sequence over the slots its heads hold, themselves included: a turn on a compressed prefix, a chunk of a prefill, tokens that a draft
    /// proposes. The T new tokens of a sequence are the last T slots of each of its heads, stored before; token i sees the slots before them and theirs up to its own: causal by slot,
    /// whatever was evicted. With one token a sequence it is <see cref="DecodeAttention"/>.
    /// </summary>
    /// <param name="plan">New tokens of each sequence, and heads.</param>
    /// <param name="cache">Keys and values.</param>
    /// <param name="query">Queries after RoPE, packed, <c>[Nq, Hq, D]</c>.</param>
    /// <param name="tables">Block tables, and lengths, which count the new tokens.</param>
    /// <param name="options">Scale, cap, sinks and window.</param>
    /// <param name="output">Receives <c>[Nq, Hq, D]</c>.</param>
    /// <param name="logSumExp">Receives <c>[Nq, Hq]</c> natural log-sum-exp of the logits and the sink; or null.</param>
    /// <exception cref="CompactorException">
    /// Shapes do not fit each other; or, where the backend's memory is the host's, a head holds fewer tokens than its sequence brings. (Lengths in device memory are not read on the host:
    /// such a head's first tokens see nothing.)
    /// </exception>
    public abstract void ExtendAttention(ExtendPlan plan, in PagedView cache, in TensorView query, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null);

    /// <summary>
    /// What the scoring operations queued since the last call find wrong with a layer's data. A backend whose operations are done when they return has thrown it already.
    /// </summary>
    /// <param name="plan">The plan they were called with.</param>
    public virtual ScoringStatus TakeStatus(LayerPlan plan) => ScoringStatus.Fine;

    /// <summary>
    /// Where the backend works on a side stream (<see cref="CudaOptions.SideStream"/>), what the caller queues on its own stream from now on waits for what is queued here: called before
    /// the caller overwrites inputs or reads results, ends a capture, or launches a graph of work captured here. Any other backend has nothing to join.
    /// </summary>
    public virtual void Join() { }

    /// <summary>Copies elements to an array, once everything queued before is done.</summary>
    /// <param name="source">Backend memory.</param>
    public T[] Read<T>(BufferView<T> source) where T : unmanaged
    {
        using var host = AllocateHost<T>(source.Length);
        Download(source, host.View);
        using var done = Record();
        done.Wait();
        return host.View.AsSpan().ToArray();
    }

    /// <summary>Releases what the backend holds.</summary>
    public abstract void Dispose();

    /// <summary>Leverage scores of a ragged plan, which come without attention scores.</summary>
    /// <exception cref="CompactorException">There are attention scores.</exception>
    private protected static BufferView<float> RequireLeverageAlone(BufferView<float>? leverage, BufferView<float>? attention) =>
        attention is null && leverage is { } scores ? scores
            : throw CompactorException.Unsupported("A ragged layer is scored by leverage alone; its heads hold different tokens, which no query chunk lines up with.");

    /// <summary>Checks a ragged plan against the tables it is for.</summary>
    /// <exception cref="CompactorException">They do not fit; the message names what.</exception>
    private protected static void CheckRagged(LayerPlan plan, in PagedSlots slots, PagedTables tables, RotaryEmbedding? undo)
    {
        var shape = plan.Shape;
        if (!shape.IsRagged)
            throw CompactorException.Argument("The plan is not ragged; use Leverage for dense keys.");
        if (slots.Cache.Dim != shape.HeadDim || slots.Cache.ElementType != shape.ElementType)
            throw CompactorException.Argument($"The cache holds rows of {slots.Cache.Dim} {slots.Cache.ElementType} elements; the plan is for {shape.HeadDim} {shape.ElementType}.");
        int rows = shape.Sequences * shape.KvHeads;
        if (tables.Lengths.Length != rows || tables.Tables.Length < (long)rows * tables.RowStride)
            throw CompactorException.Argument($"There are {tables.Lengths.Length} lengths and {tables.Tables.Length} table entries; {rows} rows of {tables.RowStride} are needed.");
        undo?.ValidateStored(shape.HeadDim, 0);
    }
}

/// <summary>A point in a backend's queue.</summary>
public abstract class BackendEvent : IDisposable
{
    /// <summary>Whether everything queued before the point is done. Never waits.</summary>
    public abstract bool HasPassed { get; }

    /// <summary>Blocks the calling thread until everything queued before the point is done.</summary>
    public abstract void Wait();

    /// <summary>Gives the event back; what is queued goes on.</summary>
    public abstract void Dispose();
}

/// <summary>The event of a backend whose operations are done when they return.</summary>
internal sealed class PassedEvent : BackendEvent
{
    public override bool HasPassed => true;

    public override void Wait() { }

    public override void Dispose() { }
}

/// <summary>What scoring a layer found wrong with its data, told when the backend knows.</summary>
public abstract class ScoringStatus : IDisposable
{
    /// <summary>Nothing is wrong, which is known already.</summary>
    internal static ScoringStatus Fine { get; } = new Known();

    /// <summary>Whether it is known, so that asking does not wait. Never waits.</summary>
    public abstract bool IsKnown { get; }

    /// <summary>Number of scores that were not finite and became the lowest finite value; waits until it is known.</summary>
    public abstract long NonFiniteScores { get; }

    /// <summary>Waits until it is known.</summary>
    /// <exception cref="CompactorException">Keys, queries or scores are not finite, or no factorisation exists; the message names layer, token and head.</exception>
    public abstract void ThrowIfFailed();

    /// <summary>Gives up what it holds; what was not asked is not told.</summary>
    public abstract void Dispose();

    private sealed class Known : ScoringStatus
    {
        public override bool IsKnown => true;

        public override long NonFiniteScores => 0;

        public override void ThrowIfFailed() { }

        public override void Dispose() { }
    }
}

/// <summary>What fusing found.</summary>
/// <param name="NonFiniteScores">Number of scores that were not finite.</param>
/// <param name="Sequence">Sequence of the first one.</param>
/// <param name="Token">Token of the first one, within its sequence.</param>
/// <param name="Head">KV head of the first one.</param>
public readonly record struct FuseStatus(long NonFiniteScores, int Sequence, int Token, int Head);

/// <summary>Memory a backend allocated; disposing it gives the memory back.</summary>
/// <typeparam name="T">Element type.</typeparam>
public abstract class BackendBuffer<T> : IDisposable where T : unmanaged
{
    /// <summary>The memory, while it is not disposed.</summary>
    public abstract BufferView<T> View { get; }

    /// <summary>Gives the memory back.</summary>
    public abstract void Dispose();
}
