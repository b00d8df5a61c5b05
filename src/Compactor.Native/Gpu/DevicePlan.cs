using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>What kernels read of a <see cref="LayerPlan"/>, in device memory: uploaded once, at the first use of the plan.</summary>
internal sealed class DevicePlan
{
    private readonly BackendBuffer<int> _memory;

    public DevicePlan(GpuBackend backend, LayerPlan plan)
    {
        var shape = plan.Shape;
        int[] places = [.. shape.CuSeqlens];
        (SkipFirst, SkipLast) = plan.Options.ScoreProtected ? (0, 0) : (plan.Options.ProtectFirst, plan.Options.ProtectLast);
        int[] attention = ChunkStarts(plan, plan.Options.AttentionChunk, out int attentionChunks);
        AttentionChunks = attentionChunks;
        _memory = backend.Allocate<int>(places.Length + attention.Length);
        backend.Upload<int>([.. places, .. attention], _memory.View);
        CuSeqlens = (ulong)_memory.View.Address;
        AttentionChunkStarts = CuSeqlens + sizeof(int) * (ulong)places.Length;
    }

    /// <summary>i32 offsets of the sequences, or of their heads where ragged.</summary>
    public ulong CuSeqlens { get; }

    /// <summary>i32 [B + 1], as chunks.cuh says.</summary>
    public ulong AttentionChunkStarts { get; }

    public int AttentionChunks { get; }

    /// <summary>Tokens that are not scored, at both ends of a sequence.</summary>
    public int SkipFirst { get; }

    public int SkipLast { get; }

    public void Free() => _memory.Dispose();

    private static int[] ChunkStarts(LayerPlan plan, int size, out int chunks)
    {
        var starts = new int[plan.Shape.CuSeqlens.Count];
        for (int b = 0; b + 1 < starts.Length; b++)
        {
            var (first, end) = plan.Shape.IsRagged ? plan.ScoredTokens(b / plan.Shape.KvHeads, b % plan.Shape.KvHeads) : plan.ScoredTokens(b);
            starts[b + 1] = starts[b] + (size == 0 ? Math.Min(1, end - first) : (end - first + size - 1) / size);
        }
        chunks = starts[^1];
        return starts;
    }
}
