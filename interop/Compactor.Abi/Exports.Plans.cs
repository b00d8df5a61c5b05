using System.Runtime.InteropServices;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Abi;

internal static unsafe partial class Exports
{
    [UnmanagedCallersOnly(EntryPoint = "compactor_options_preset")]
    public static Status OptionsPreset(int preset, Options* options) => Boundary.Run(() =>
    {
        Arguments.CheckStruct("options", options);
        Arguments.Fill(options, Inputs.FromOptions(preset switch
        {
            0 => CompressionPresets.Paper,
            1 => CompressionPresets.KvPress,
            2 => CompressionPresets.CompactorVllm,
            _ => throw AbiException.Argument($"The preset is {preset}; use one of COMPACTOR_PRESET_*."),
        }));
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_plan_create")]
    public static Status PlanCreate(Shape* shape, Options* options, Budget* budgets, int budgetCount, ulong* plan) => Boundary.Run(() =>
    {
        Arguments.CheckResult("plan", plan);
        var layer = Inputs.ToShape(shape);
        var made = new LayerPlan(layer, Inputs.ToOptions(options), Inputs.ToBudgets(budgets, budgetCount, layer.Sequences));
        *plan = Handles.Add(HandleKind.Plan, made);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_plan_create_held")]
    public static Status PlanCreateHeld(ulong* sequences, int count, int layer, int firstHead, long* sequenceIds, Options* options, Budget* budgets, int budgetCount, ulong* plan) =>
        Boundary.Run(() =>
        {
            Arguments.CheckResult("plan", plan);
            using var batch = new Batch(sequences, count);
            var shape = CacheCompressor.HeldShape(batch.Sequences, layer) with
            {
                FirstHead = Inputs.Index("first_head", firstHead),
                SequenceIds = Inputs.SequenceIds(sequenceIds, count),
            };
            var made = new LayerPlan(shape, Inputs.ToOptions(options), Inputs.ToBudgets(budgets, budgetCount, count));
            *plan = Handles.Add(HandleKind.Plan, made);
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_plan_describe")]
    public static Status PlanDescribe(ulong plan, PlanInfo* info) => Boundary.Run(() =>
    {
        using var used = Handles.Use<LayerPlan>(plan, HandleKind.Plan);
        Arguments.CheckStruct("info", info);
        var shape = used.Value.Shape;
        Arguments.Fill(info, new PlanInfo
        {
            Sequences = shape.Sequences,
            KvHeads = shape.KvHeads,
            KeepsEverything = used.Value.KeepsEverything ? 1 : 0,
            Tokens = shape.Tokens,
            Pairs = shape.Pairs,
            KeptPairs = used.Value.KeptPairs,
            WorkspaceBytes = (ulong)LayerMemory.WorkspaceBytes(used.Value),
        });
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_plan_kept")]
    public static Status PlanKept(ulong plan, long* keptPairs, int count) => Boundary.Run(() =>
    {
        using var used = Handles.Use<LayerPlan>(plan, HandleKind.Plan);
        var kept = new Arguments().Output("kept_pairs", keptPairs, count, used.Value.Shape.Sequences).AsSpan();
        for (int b = 0; b < kept.Length; b++)
            kept[b] = used.Value.KeptPairsOf(b);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_plan_destroy")]
    public static Status PlanDestroy(ulong plan) => Boundary.Run(() => Handles.Close<LayerPlan>(plan, HandleKind.Plan));
}
