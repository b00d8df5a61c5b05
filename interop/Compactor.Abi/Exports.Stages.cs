using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Abi;

internal static unsafe partial class Exports
{
    [UnmanagedCallersOnly(EntryPoint = "compactor_leverage")]
    public static Status Leverage(ulong backend, ulong plan, Tensor* keys, Rotary* undo, float* phi, long phiCount, float* leverage, long count) =>
        Stage(backend, plan, (on, layer, memory) =>
        {
            var view = Inputs.ToScoredTensor(memory, "keys", keys, layer.Shape.KvHeads, layer.Shape.HeadDim, layer.Shape);
            var rotary = Inputs.ToRotary(undo, layer.Shape.Tokens);
            rotary?.Validate(layer.Shape);
            var scores = memory.Output("leverage", leverage, count, layer.Shape.Pairs);
            var sketch = Inputs.ToSketch(phi, phiCount, layer) ?? layer.Sketch;
            on.Findings.Begin(layer);
            on.Operations.Leverage(layer, view, rotary, sketch, scores);
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_attention_scores")]
    public static Status AttentionScores(ulong backend, ulong plan, Tensor* query, Tensor* key, float* attention, long count) =>
        Stage(backend, plan, (on, layer, memory) =>
        {
            var shape = layer.Shape;
            if (shape.QueryHeads == 0)
                throw AbiException.Argument("The plan has no query heads; make it of a shape with query_heads.");
            var queries = Inputs.ToScoredTensor(memory, "query", query, shape.QueryHeads, shape.HeadDim, shape);
            var keys = Inputs.ToScoredTensor(memory, "key", key, shape.KvHeads, shape.HeadDim, shape);
            var scores = memory.Output("attention", attention, count, shape.Pairs);
            on.Findings.Begin(layer);
            on.Operations.AttentionScores(layer, queries, keys, scores);
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_fuse")]
    public static Status Fuse(ulong backend, ulong plan, float* leverage, float* attention, Tensor* value, float* scores, long count, long* nonFinite) =>
        Stage(backend, plan, (on, layer, memory) =>
        {
            var shape = layer.Shape;
            if (nonFinite is not null)
                memory.Output("non_finite", nonFinite, 1, 1);
            BufferView<float>? o = leverage is null ? null : memory.Input("leverage", leverage, count, shape.Pairs);
            BufferView<float>? a = attention is null ? null : memory.Input("attention", attention, count, shape.Pairs);
            if (o is null && a is null && shape.Pairs > 0)
                throw AbiException.Argument("leverage and attention are both NULL; give one or both.");
            bool weigh = layer.Options.WeightByValueNorm && a is not null;
            var view = weigh ? Inputs.ToScoredTensor(memory, "value", value, shape.KvHeads, shape.HeadDim, shape) : default;
            var fused = memory.Output("scores", scores, count, shape.Pairs);
            on.Findings.Begin(nonFinite is null ? layer : null);
            long found = shape.Pairs == 0 ? 0 : on.Operations.Fuse(layer, o, a, view, fused).NonFiniteScores;
            if (nonFinite is null)
                return;
            // known now, or, where operations are queued, told by their status
            using var status = on.Operations.TakeStatus(layer);
            *nonFinite = found + status.NonFiniteScores;
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_select")]
    public static Status Select(ulong backend, ulong plan, float* scores, long count, int* keptIndices, long keptCount, int* keptOffsets, long offsetCount) =>
        Stage(backend, plan, (on, layer, memory) =>
        {
            var given = memory.Input("scores", scores, count, layer.Shape.Pairs);
            var (indices, offsets) = KeptOutputs(memory, layer, keptIndices, keptCount, keptOffsets, offsetCount);
            on.Operations.Select(layer, given, indices, offsets);
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_compact")]
    public static Status Compact(ulong backend, ulong plan, Tensor* source, int* keptIndices, long keptCount, int* keptOffsets, long offsetCount,
        void* destination, ulong destinationBytes) =>
        Stage(backend, plan, (on, layer, memory) =>
        {
            var view = Inputs.ToTensor(memory, "source", source, layer.Shape);
            if (view.Heads != layer.Shape.KvHeads)
                throw AbiException.Argument($"source has {view.Heads} heads; the plan has {layer.Shape.KvHeads} KV heads.");
            var (indices, offsets) = KeptInputs(on, memory, layer, keptIndices, keptCount, keptOffsets, offsetCount);
            long bytes = checked(layer.KeptPairs * view.Dim * view.ElementType.Size());
            on.Operations.Compact(layer, view, indices, offsets, memory.OutputBytes("destination", destination, destinationBytes, bytes, view.ElementType.Size()));
        });

    [UnmanagedCallersOnly(EntryPoint = "compactor_compress_layer")]
    public static Status CompressLayer(ulong backend, ulong plan, Layer* layer, void* workspace, ulong workspaceBytes, int* keptIndices, long keptCount,
        int* keptOffsets, long offsetCount, void* keyOut, ulong keyBytes, void* valueOut, ulong valueBytes) =>
        Stage(backend, plan, (on, planned, memory) =>
        {
            var (inputs, policy, sketch) = Inputs.ToLayer(memory, layer, planned);
            var (indices, offsets) = KeptOutputs(memory, planned, keptIndices, keptCount, keptOffsets, offsetCount);
            var given = new LayerMemory(memory.Workspace(workspace, workspaceBytes, LayerMemory.WorkspaceBytes(planned)), indices, offsets);
            if (keyOut is null != valueOut is null && planned.KeptPairs > 0)
                throw AbiException.Argument("One of key_out and value_out is NULL; give both, or neither to select only.");
            bool gather = keyOut is not null && valueOut is not null;
            var keys = gather ? Survivors("key_out", keyOut, keyBytes, inputs.Key) : default;
            var values = gather ? Survivors("value_out", valueOut, valueBytes, inputs.Value) : default;
            on.Findings.Begin(null);
            using var selection = LayerCompressor.Select(on.Operations, planned, inputs, policy, sketch, given);
            on.Findings.Add(selection.ReleaseStatus());
            if (gather)
            {
                on.Operations.Compact(planned, inputs.Key, indices, offsets, keys);
                on.Operations.Compact(planned, inputs.Value, indices, offsets, values);
            }

            BufferView<byte> Survivors(string name, void* pointer, ulong bytes, in TensorView source) =>
                memory.OutputBytes(name, pointer, bytes, planned.KeptPairs * source.Dim * source.ElementType.Size(), source.ElementType.Size());
        });

    /// <summary>A stage of a dense layer, one at a time on its backend.</summary>
    private static Status Stage(ulong backend, ulong plan, Action<Backend, LayerPlan, Arguments> body) => Boundary.Run(() =>
    {
        using var on = Handles.Use<Backend>(backend, HandleKind.Backend);
        using var layer = Handles.Use<LayerPlan>(plan, HandleKind.Plan);
        RequireDense(layer.Value);
        lock (on.Value.Turn)
            body(on.Value, layer.Value, new Arguments());
    });

    private static void RequireDense(LayerPlan plan)
    {
        if (plan.Shape.IsRagged)
            throw AbiException.Argument("The plan is of what sequences hold (compactor_plan_create_held); it is for compactor_sequence_recompress only.");
    }

    private static (BufferView<int> Indices, BufferView<int> Offsets) KeptOutputs(Arguments memory, LayerPlan plan, int* indices, long count, int* offsets, long offsetCount) =>
        (memory.Output("kept_indices", indices, count, plan.KeptPairs), memory.Output("kept_offsets", offsets, offsetCount, plan.Shape.Sequences * plan.Shape.KvHeads + 1));

    /// <summary>Lists that index other memory: where the host can read them they are checked whole.</summary>
    private static (BufferView<int> Indices, BufferView<int> Offsets) KeptInputs(Backend on, Arguments memory, LayerPlan plan, int* indices, long count, int* offsets, long offsetCount)
    {
        var kept = memory.Input("kept_indices", indices, count, plan.KeptPairs);
        var starts = memory.Input("kept_offsets", offsets, offsetCount, plan.Shape.Sequences * plan.Shape.KvHeads + 1);
        if (!on.IsHostMemory)
            return (kept, starts);
        if (offsets[0] != 0 || offsets[offsetCount - 1] != count)
            throw AbiException.Argument($"kept_offsets go from {offsets[0]} to {offsets[offsetCount - 1]}; they go from 0 to the {count} kept indices.");
        for (int row = 0; row < offsetCount - 1; row++)
        {
            if (offsets[row + 1] < offsets[row] || offsets[row + 1] > count)
                throw AbiException.Argument($"kept_offsets[{row + 1}] is {offsets[row + 1]} after {offsets[row]}; offsets ascend to {count}.");
            int length = plan.Shape.LengthOf(row / plan.Shape.KvHeads), previous = -1;
            for (int i = offsets[row]; i < offsets[row + 1]; previous = indices[i++])
                if (indices[i] <= previous || indices[i] >= length)
                    throw AbiException.Argument($"kept_indices[{i}] is {indices[i]} after {previous}; tokens of a head ascend below the {length} its sequence has.");
        }
        return (kept, starts);
    }
}
