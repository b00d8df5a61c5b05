namespace Compactor.Native.Compression;

/// <summary>Memory a caller gives for the scores and results of one layer, in reach of the backend; it stays the caller's.</summary>
/// <param name="Workspace">Scratch for scores, <see cref="WorkspaceBytes"/> or more; its content is unspecified afterwards.</param>
/// <param name="KeptIndices">Receives <see cref="LayerSelection.KeptIndices"/>: <see cref="LayerPlan.KeptPairs"/> entries.</param>
/// <param name="KeptOffsets">Receives <see cref="LayerSelection.KeptOffsets"/>: <c>B·Hkv + 1</c> entries.</param>
public sealed record LayerMemory(BufferView<byte> Workspace, BufferView<int> KeptIndices, BufferView<int> KeptOffsets)
{
    /// <summary>Boundary that the workspace, and each score buffer in it, starts on, in bytes.</summary>
    public const int Alignment = 256;

    private const int ScoreBuffers = 3;

    /// <summary>Bytes of workspace a plan takes: leverage, attention and fused scores; 0 where everything is kept.</summary>
    public static long WorkspaceBytes(LayerPlan plan) => plan.KeepsEverything ? 0 : ScoreBuffers * ScoreBytes(plan);

    /// <summary>Checks the memory against a plan.</summary>
    /// <exception cref="CompactorException">It is too small, not aligned, or lists have other lengths than the plan's.</exception>
    public void Validate(LayerPlan plan)
    {
        if (Workspace.Length < WorkspaceBytes(plan))
            throw CompactorException.Argument($"The workspace holds {Workspace.Length} bytes; the plan takes {WorkspaceBytes(plan)}.");
        if (Workspace.Length > 0 && Workspace.Address % Alignment != 0)
            throw CompactorException.Argument($"The workspace does not start on a boundary of {Alignment} bytes.");
        int offsets = plan.Shape.Sequences * plan.Shape.KvHeads + 1;
        if (KeptIndices.Length != plan.KeptPairs || KeptOffsets.Length != offsets)
            throw CompactorException.Argument($"There is room for {KeptIndices.Length} kept indices and {KeptOffsets.Length} offsets; the plan has {plan.KeptPairs} and {offsets}.");
    }

    internal BufferView<float> Scores(LayerPlan plan, int index) => new(Workspace.Slice(index * ScoreBytes(plan), ScoreBytes(plan)).Address, plan.Shape.Pairs);

    private static long ScoreBytes(LayerPlan plan) => ((long)plan.Shape.Pairs * sizeof(float) + Alignment - 1) / Alignment * Alignment;
}

/// <summary>Memory of a caller's in the place of a backend's own.</summary>
internal sealed class BorrowedBuffer<T>(BufferView<T> view) : BackendBuffer<T> where T : unmanaged
{
    public override BufferView<T> View => view;

    public override void Dispose() { }
}
