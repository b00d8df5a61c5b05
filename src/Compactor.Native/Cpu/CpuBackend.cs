using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>SIMD width the CPU backend computes with.</summary>
public enum SimdWidth
{
    /// <summary>The widest the machine has and the program was compiled for: on the runtime's JIT any, ahead of time what <c>IlcInstructionSet</c> names.</summary>
    Auto = 0,
    /// <summary>4 float32 lanes: any machine.</summary>
    Bits128 = 128,
    /// <summary>8 lanes: AVX2 with FMA.</summary>
    Bits256 = 256,
    /// <summary>16 lanes: AVX-512.</summary>
    Bits512 = 512,
}

/// <summary>
/// The operations on the CPU: SIMD, blocked, multi-threaded; float32, float16 and bfloat16 inputs are converted while loading. Results are the same
/// bits for any number of threads at one SIMD width.
/// </summary>
public sealed unsafe partial class CpuBackend : KvBackend
{
    private readonly Workers _workers;

    /// <summary>Creates a backend.</summary>
    /// <param name="threads">Threads to compute on; 0 for all cores.</param>
    /// <param name="width">SIMD width; a width the machine lacks is refused.</param>
    /// <exception cref="CompactorException">The thread count is negative, or the machine lacks the width.</exception>
    public CpuBackend(int threads = 0, SimdWidth width = SimdWidth.Auto)
    {
        if (threads < 0)
            throw CompactorException.Argument($"The thread count is {threads}; use 1 or more, or 0 for all cores.");
        if (width == SimdWidth.Auto)
            width = Supports(SimdWidth.Bits512) ? SimdWidth.Bits512 : Supports(SimdWidth.Bits256) ? SimdWidth.Bits256 : SimdWidth.Bits128;
        if (!Supports(width))
            throw CompactorException.Unsupported($"This machine has no {(int)width}-bit vectors, or the program was not compiled for them; use SimdWidth.Auto.");
        Width = width;
        _workers = new Workers(threads == 0 ? Environment.ProcessorCount : threads);
    }

    /// <summary>SIMD width in use.</summary>
    public SimdWidth Width { get; }

    /// <summary>Threads in use.</summary>
    public int Threads => _workers.Threads;

    /// <summary>Whether scratch, and what lies behind it, is handed out as NaN, and a stage that writes there fails: what tests run with.</summary>
    internal bool ChecksMemory
    {
        get => _workers.ChecksMemory;
        init => _workers.ChecksMemory = value;
    }

    /// <summary>Most bytes of scratch and workspace held at once so far, beyond inputs and outputs.</summary>
    public long PeakWorkspaceBytes => _workers.PeakBytes;

    /// <inheritdoc/>
    public override string Name => "cpu";

    /// <inheritdoc/>
    public override string Description => $"CPU, {Threads} thread{(Threads == 1 ? "" : "s")}, {(int)Width}-bit vectors";

    /// <inheritdoc/>
    public override bool IsHostMemory => true;

    /// <summary>Whether this machine computes a width, and the program was compiled for it.</summary>
    public static bool Supports(SimdWidth width) => width switch
    {
        // not Vector512.IsHardwareAccelerated, which is false on CPUs that clock down for AVX-512: it pays there, too (bench/notes.md)
        SimdWidth.Bits512 => Avx512F.IsSupported,
        SimdWidth.Bits256 => Avx2.IsSupported && Fma.IsSupported,
        SimdWidth.Bits128 or SimdWidth.Auto => true,
        _ => false,
    };

    /// <inheritdoc/>
    public override BackendBuffer<T> Allocate<T>(long length) => new HostBuffer<T>(length);

    /// <inheritdoc/>
    public override void Leverage(LayerPlan plan, in TensorView keys, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage)
    {
        CheckScores(plan, leverage, nameof(leverage));
        CheckSketch(plan, sketch);
        switch (Width)
        {
            case SimdWidth.Bits512: CpuLeverage<Lanes512, Vector512<float>>.Run(_workers, plan, keys, undo, sketch, leverage); break;
            case SimdWidth.Bits256: CpuLeverage<Lanes256, Vector256<float>>.Run(_workers, plan, keys, undo, sketch, leverage); break;
            default: CpuLeverage<Lanes128, Vector128<float>>.Run(_workers, plan, keys, undo, sketch, leverage); break;
        }
    }

    /// <inheritdoc/>
    public override void LeverageOfSlots(LayerPlan plan, in PagedSlots slots, PagedTables tables, RotaryEmbedding? undo, int positionEnd, Sketch sketch, BufferView<float> leverage)
    {
        CheckRagged(plan, slots, tables, undo);
        for (int row = 0; row < tables.Lengths.Length; row++)
            if (tables.Lengths.AsSpan()[row] != plan.Shape.LengthOf(row))
                throw CompactorException.Argument($"Row {row} of the tables holds {tables.Lengths.AsSpan()[row]} slots; the plan was made for {plan.Shape.LengthOf(row)}.");
        CheckScores(plan, leverage, nameof(leverage));
        CheckSketch(plan, sketch);
        switch (Width)
        {
            case SimdWidth.Bits512: CpuLeverage<Lanes512, Vector512<float>>.Run(_workers, plan, slots, tables, undo, sketch, leverage); break;
            case SimdWidth.Bits256: CpuLeverage<Lanes256, Vector256<float>>.Run(_workers, plan, slots, tables, undo, sketch, leverage); break;
            default: CpuLeverage<Lanes128, Vector128<float>>.Run(_workers, plan, slots, tables, undo, sketch, leverage); break;
        }
    }

    /// <inheritdoc/>
    public override void AttentionScores(LayerPlan plan, in TensorView query, in TensorView key, BufferView<float> attention)
    {
        CheckScores(plan, attention, nameof(attention));
        switch (Width)
        {
            case SimdWidth.Bits512: CpuAttentionScores<Lanes512, Vector512<float>>.Run(_workers, plan, query, key, attention); break;
            case SimdWidth.Bits256: CpuAttentionScores<Lanes256, Vector256<float>>.Run(_workers, plan, query, key, attention); break;
            default: CpuAttentionScores<Lanes128, Vector128<float>>.Run(_workers, plan, query, key, attention); break;
        }
    }

    /// <inheritdoc/>
    public override FuseStatus Fuse(LayerPlan plan, BufferView<float>? leverage, BufferView<float>? attention, in TensorView value, BufferView<float> scores)
    {
        CheckScores(plan, scores, nameof(scores));
        if (leverage is null && attention is null)
            throw CompactorException.Argument("Fusing needs leverage scores, attention scores, or both.");
        if (plan.Shape.IsRagged)
            return CpuRagged.Fuse(plan, RequireLeverageAlone(leverage, attention), scores);
        return Width switch
        {
            SimdWidth.Bits512 => CpuFuse<Lanes512, Vector512<float>>.Run(_workers, plan, leverage, attention, value, scores),
            SimdWidth.Bits256 => CpuFuse<Lanes256, Vector256<float>>.Run(_workers, plan, leverage, attention, value, scores),
            _ => CpuFuse<Lanes128, Vector128<float>>.Run(_workers, plan, leverage, attention, value, scores),
        };
    }

    /// <inheritdoc/>
    public override void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets)
    {
        CheckScores(plan, scores, nameof(scores));
        CheckKept(plan, keptIndices, keptOffsets);
        if (plan.Shape.IsRagged)
            CpuRagged.Select(_workers, plan, scores, keptIndices, keptOffsets);
        else
            CpuSelect.Run(_workers, plan, scores, keptIndices, keptOffsets);
    }

    /// <inheritdoc/>
    public override void Compact(LayerPlan plan, in TensorView source, BufferView<int> keptIndices, BufferView<int> keptOffsets, BufferView<byte> destination)
    {
        CheckKept(plan, keptIndices, keptOffsets);
        int heads = plan.Shape.KvHeads;
        long rowBytes = (long)source.Dim * source.ElementType.Size();
        if (destination.Length != plan.KeptPairs * rowBytes)
            throw CompactorException.Argument($"The destination holds {destination.Length} bytes; {plan.KeptPairs} survivors take {plan.KeptPairs * rowBytes}.");
        var view = source;
        int* indices = (int*)keptIndices.Address, offsets = (int*)keptOffsets.Address;
        _workers.Run(plan.Shape.Sequences * heads, 0, (segment, _) =>
        {
            int b = segment / heads, first = offsets[segment];
            CpuGather.Rows(view.Row(b, plan.Shape.CuSeqlens[b], 0, segment % heads), (nint)(view.TokenStride * view.ElementType.Size()), (nint)rowBytes,
                indices + first, offsets[segment + 1] - first, destination.Address + (nint)(first * rowBytes));
        });
    }

    /// <inheritdoc/>
    public override void DecodeAttention(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null)
    {
        CheckDecode(cache, query, kvHeads, tables, options, output, logSumExp);
        Attend(cache, query, kvHeads, [], tables, options, output, logSumExp);
    }

    /// <inheritdoc/>
    public override void ExtendAttention(ExtendPlan plan, in PagedView cache, in TensorView query, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null)
    {
        CheckExtend(plan, cache, query, tables, options, output, logSumExp);
        Attend(cache, query, plan.KvHeads, plan.QueryStarts, tables, options, output, logSumExp);
    }

    /// <summary>Releases scratch memory.</summary>
    public override void Dispose() => _workers.Dispose();

    private void Attend(in PagedView cache, in TensorView query, int kvHeads, ReadOnlySpan<int> queryStarts, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        CheckContents(cache, query, queryStarts, tables, options);
        switch (Width)
        {
            case SimdWidth.Bits512: CpuPagedAttention<Lanes512, Vector512<float>>.Attend(_workers, cache, query, kvHeads, queryStarts, tables, options, output, logSumExp); break;
            case SimdWidth.Bits256: CpuPagedAttention<Lanes256, Vector256<float>>.Attend(_workers, cache, query, kvHeads, queryStarts, tables, options, output, logSumExp); break;
            default: CpuPagedAttention<Lanes128, Vector128<float>>.Attend(_workers, cache, query, kvHeads, queryStarts, tables, options, output, logSumExp); break;
        }
    }

    private static void CheckSketch(LayerPlan plan, Sketch sketch)
    {
        if (sketch.Dim != plan.Shape.HeadDim || (sketch.Count != 1 && sketch.Count != plan.Shape.Sequences * plan.Shape.KvHeads))
            throw CompactorException.Argument(
                $"The sketch holds {sketch.Count} Phi of {sketch.Dim} rows; the layer needs 1 or {plan.Shape.Sequences * plan.Shape.KvHeads} of {plan.Shape.HeadDim}.");
    }

    private static void CheckScores(LayerPlan plan, BufferView<float> buffer, string name)
    {
        if (buffer.Length != plan.Shape.Pairs)
            throw CompactorException.Argument($"{name} holds {buffer.Length} scores; {plan.Shape.Sequences} sequences of {plan.Shape.KvHeads} KV heads hold {plan.Shape.Pairs} pairs.");
    }

    private static void CheckKept(LayerPlan plan, BufferView<int> indices, BufferView<int> offsets)
    {
        int segments = plan.Shape.Sequences * plan.Shape.KvHeads;
        if (indices.Length != plan.KeptPairs || offsets.Length != segments + 1)
            throw CompactorException.Argument(
                $"Kept indices and offsets hold {indices.Length} and {offsets.Length} entries; the plan needs {plan.KeptPairs} and {segments + 1}.");
    }
}
