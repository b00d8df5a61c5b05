using System.Runtime.InteropServices;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Abi;

/// <summary>A compaction the host has not ended yet.</summary>
/// <param name="Pending">The compaction.</param>
/// <param name="SequenceHandles">The sequences whose tables it will change.</param>
internal sealed record Compaction(PendingCompaction Pending, ulong[] SequenceHandles);

internal static unsafe partial class Exports
{
    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_compress")]
    public static Status SequenceCompress(ulong* sequences, int count, int layer, ulong plan, Layer* inputs, int* firstPositions, ulong* compaction) =>
        Begin(sequences, count, plan, compaction, (batch, planned) =>
        {
            RequireDense(planned);
            int[]? positions = firstPositions is null ? null : Arguments.Copy("first_positions", firstPositions, count, count);
            var (given, policy, sketch) = Inputs.ToLayer(new Arguments(), inputs, planned);
            batch.Backend.Findings.Begin(null);
            return CacheCompressor.StorePrefill(batch.Sequences, layer, planned, given, positions, policy, sketch);
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_compact")]
    public static Status SequenceCompact(ulong* sequences, int count, int layer, ulong plan, Layer* inputs, ulong* compaction) =>
        Begin(sequences, count, plan, compaction, (batch, planned) =>
        {
            RequireDense(planned);
            var (given, policy, sketch) = Inputs.ToLayer(new Arguments(), inputs, planned);
            batch.Backend.Findings.Begin(null);
            return CacheCompressor.CompactPrefill(batch.Sequences, layer, planned, given, policy, sketch);
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_recompress")]
    public static Status SequenceRecompress(ulong* sequences, int count, int layer, ulong plan, Rotary* rotary, ulong* compaction) =>
        Begin(sequences, count, plan, compaction, (batch, planned) =>
        {
            if (!planned.Shape.IsRagged)
                throw AbiException.Argument("The plan is of a prefill; make one of what the sequences hold with compactor_plan_create_held.");
            var undo = Inputs.ToRotary(rotary, null);
            batch.Backend.Findings.Begin(null);
            return CacheCompressor.Recompress(batch.Sequences, layer, planned, undo);
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_compaction_ready")]
    public static Status CompactionReady(ulong compaction, int* ready) => Boundary.Run(() =>
    {
        using var used = Handles.Own<Compaction>(compaction, HandleKind.Compaction);
        Arguments.CheckResult("ready", ready);
        *ready = used.Value.Pending.IsReady ? 1 : 0;
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_compaction_complete")]
    public static Status CompactionComplete(ulong compaction) => End(compaction, pending => pending.Complete(), evenIfRefused: false);

    [UnmanagedCallersOnly(EntryPoint = "compactor_compaction_cancel")]
    public static Status CompactionCancel(ulong compaction) => End(compaction, pending => pending.Dispose(), evenIfRefused: true);

    private static Status Begin(ulong* sequences, int count, ulong plan, ulong* compaction, Func<Batch, LayerPlan, PendingCompaction> begin) => Boundary.Run(() =>
    {
        using var batch = new Batch(sequences, count);
        using var planned = Handles.Use<LayerPlan>(plan, HandleKind.Plan);
        if (compaction is not null)
            Arguments.CheckResult("compaction", compaction);
        PendingCompaction pending;
        lock (batch.Backend.Turn)
            pending = begin(batch, planned.Value);
        try
        {
            if (compaction is not null)
                *compaction = Handles.Add(HandleKind.Compaction, new Compaction(pending, batch.SequenceHandles), batch.SequenceHandles);
            else
                pending.Complete();
        }
        catch
        {
            pending.Dispose();
            throw;
        }
    });

    /// <summary>Ends a compaction, which changes its sequences' tables, and then its handle.</summary>
    /// <param name="compaction">The handle.</param>
    /// <param name="end">Ends it.</param>
    /// <param name="evenIfRefused">Whether it has ended, too, where <paramref name="end"/> throws.</param>
    private static Status End(ulong compaction, Action<PendingCompaction> end, bool evenIfRefused) => Boundary.Run(() =>
    {
        var used = Handles.Own<Compaction>(compaction, HandleKind.Compaction);
        bool ended = false;
        try
        {
            fixed (ulong* sequences = used.Value.SequenceHandles)
            {
                using var batch = new Batch(sequences, used.Value.SequenceHandles.Length);
                ended = evenIfRefused;
                end(used.Value.Pending);
                ended = true;
            }
        }
        finally
        {
            if (ended)
                Handles.Retire(compaction);
            else
                used.Dispose();
        }
    });
}
