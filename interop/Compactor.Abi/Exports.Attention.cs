using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Paging;
using LibraryDecodeOptions = Compactor.Native.Paging.AttentionOptions;
using LibraryView = Compactor.Native.Paging.PagedView;

namespace Compactor.Abi;

internal static unsafe partial class Exports
{
    [UnmanagedCallersOnly(EntryPoint = "compactor_tables_create")]
    public static Status TablesCreate(ulong* sequences, int count, int layer, ulong* tables) => Boundary.Run(() =>
    {
        using var batch = new Batch(sequences, count);
        Arguments.CheckResult("tables", tables);
        var made = new Tables(batch.Backend.Operations, batch.Sequences, layer);
        *tables = Handles.AddOrDispose(HandleKind.Tables, made, made, batch.Cache.BackendHandle);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_tables_describe")]
    public static Status TablesDescribe(ulong tables, TablesInfo* info) => Boundary.Run(() =>
    {
        using var used = Handles.Use<Tables>(tables, HandleKind.Tables);
        Arguments.CheckStruct("info", info);
        Arguments.Fill(info, used.Value.Describe());
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_tables_destroy")]
    public static Status TablesDestroy(ulong tables) => Boundary.Run(() => Handles.Close<Tables>(tables, HandleKind.Tables, closed => closed.Dispose()));

    [UnmanagedCallersOnly(EntryPoint = "compactor_decode_attention")]
    public static Status DecodeAttention(ulong backend, PagedView* cache, Tensor* query, int* tables, long tableCount, int rowStride, int* lengths, int lengthCount,
        DecodeOptions* options, float* output, long outputCount, float* logSumExp, long lseCount) => Boundary.Run(() =>
    {
        using var on = Handles.Use<Backend>(backend, HandleKind.Backend);
        var memory = new Arguments();
        var (view, kvHeads, blocks) = ToView(memory, cache, written: false);
        var (queries, decode) = Queries(memory, query, view.Dim, options);
        if (rowStride < 0 || (lengthCount != queries.Tokens && lengthCount != (long)queries.Tokens * kvHeads))
            throw AbiException.Argument($"There are {lengthCount} lengths and a row stride of {rowStride} for {queries.Tokens} sequences of {kvHeads} KV heads; give one length a (sequence, head), or one a sequence.");
        var rows = memory.Input("tables", tables, tableCount, (long)lengthCount * rowStride);
        var held = memory.Input("lengths", lengths, lengthCount, lengthCount);
        var (to, lse) = AttentionOutputs(memory, queries, output, outputCount, logSumExp, lseCount);
        if (on.Value.IsHostMemory)
            for (int row = 0; row < lengthCount; row++)
                RequireBlocks(new ReadOnlySpan<int>(tables + (long)row * rowStride, rowStride), row, lengths[row], view.BlockSize, blocks, null);
        lock (on.Value.Turn)
            on.Value.Operations.DecodeAttention(view, queries, kvHeads, new PagedTables(rows, rowStride, held), decode, to, lse);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_attend")]
    public static Status SequenceAttend(ulong* sequences, int count, int layer, Tensor* query, DecodeOptions* options, float* output, long outputCount,
        float* logSumExp, long lseCount) => Boundary.Run(() =>
    {
        using var batch = new Batch(sequences, count);
        var pages = batch.Cache.Pages;
        var memory = new Arguments();
        var (queries, decode) = Queries(memory, query, pages.Options.HeadDim, options);
        if (queries.Tokens != count)
            throw AbiException.Argument($"query has {queries.Tokens} tokens for {count} sequences; give one a sequence.");
        var (to, lse) = AttentionOutputs(memory, queries, output, outputCount, logSumExp, lseCount);
        using var tables = new Tables(pages.Backend, batch.Sequences, layer);
        lock (batch.Backend.Turn)
            pages.Backend.DecodeAttention(pages.View, queries, pages.Options.KvHeads, tables.View, decode, to, lse);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_host_cache_compact")]
    public static Status HostCacheCompact(ulong backend, PagedView* cache, ulong plan, int* tables, long tableCount, int rowStride, int* keptIndices, long keptCount,
        int* keptOffsets, long offsetCount, int* lengths, int lengthCount) => Boundary.Run(() =>
    {
        using var on = Handles.Use<Backend>(backend, HandleKind.Backend);
        using var used = Handles.Use<LayerPlan>(plan, HandleKind.Plan);
        var planned = used.Value;
        RequireDense(planned);
        if (planned.Options.SelectionScope == SelectionScope.Sequence && !planned.KeepsEverything)
            throw new AbiException(Status.Unsupported, "Heads of a selection in sequence scope keep different numbers of tokens, which one block table for all heads cannot hold. Select in head or token scope, or use a compactor_cache.");
        var memory = new Arguments();
        var (view, kvHeads, blocks) = ToView(memory, cache, written: true);
        if (kvHeads != planned.Shape.KvHeads || view.Dim != planned.Shape.HeadDim)
            throw AbiException.Argument($"The cache has {kvHeads} KV heads of dimension {view.Dim}; the plan is of {planned.Shape.KvHeads} of {planned.Shape.HeadDim}.");
        int sequences = planned.Shape.Sequences;
        if (rowStride < 0)
            throw AbiException.Argument($"row_stride is {rowStride}; use 0 or more.");
        int[] rows = Arguments.Copy("tables", tables, tableCount, (long)sequences * rowStride);
        memory.Input("tables", tables, tableCount, tableCount);
        var seen = new HashSet<int>();
        for (int b = 0; b < sequences; b++)
            RequireBlocks(rows.AsSpan(b * rowStride, rowStride), b, planned.Shape.LengthOf(b), view.BlockSize, blocks, seen);
        var (indices, offsets) = KeptInputs(on.Value, memory, planned, keptIndices, keptCount, keptOffsets, offsetCount);
        var held = memory.Output("lengths", lengths, lengthCount, sequences).AsSpan();
        if (on.Value.IsHostMemory)
            for (int row = 0; row < sequences * kvHeads; row++)
                if (keptOffsets[row + 1] - keptOffsets[row] != planned.KeptTokensOf(row / kvHeads, row % kvHeads))
                    throw AbiException.Argument($"kept_offsets give head {row % kvHeads} of sequence {row / kvHeads} {keptOffsets[row + 1] - keptOffsets[row]} tokens; by the plan it keeps {planned.KeptTokensOf(row / kvHeads, row % kvHeads)}.");
        using var table = on.Value.Operations.Allocate<int>(rows.Length);
        on.Value.Operations.Upload(rows, table.View);
        lock (on.Value.Turn)
            on.Value.Operations.CompactInPlace(view, kvHeads, table.View, rowStride, indices, offsets);
        for (int b = 0; b < sequences; b++)
            held[b] = planned.KeptTokensOf(b, 0);
    });

    /// <summary>A host's view of a cache, every slot of which lies in the memory it vouches for.</summary>
    private static (LibraryView View, int KvHeads, int Blocks) ToView(Arguments memory, PagedView* pointer, bool written)
    {
        var v = Arguments.Read("cache", pointer);
        var type = Inputs.Constant<ElementType>("cache.element_type", v.ElementType);
        if (v.Blocks < 0 || v.BlockSize < 1 || v.KvHeads < 1 || v.Dim < 1 || v.BlockStride < 0 || v.SlotStride < 0 || v.HeadStride < 0)
            throw AbiException.Argument($"cache has {v.Blocks} blocks of {v.BlockSize} slots, {v.KvHeads} heads of {v.Dim}, and strides {v.BlockStride}, {v.SlotStride} and {v.HeadStride}; sizes are 1 or more (blocks 0 or more), strides not negative.");
        Arguments.RequirePointer("cache.keys", v.Keys, v.Blocks, type.Size());
        Arguments.RequirePointer("cache.values", v.Values, v.Blocks, type.Size());
        Int128 end = v.Blocks == 0 ? 0
            : (Int128)(v.Blocks - 1) * v.BlockStride + (Int128)(v.BlockSize - 1) * v.SlotStride + (Int128)(v.KvHeads - 1) * v.HeadStride + v.Dim;
        var bytes = (UInt128)end * (uint)type.Size();
        if (bytes > v.Bytes)
            throw AbiException.Argument($"cache reaches to byte {bytes} by its shape and strides; bytes is {v.Bytes}.");
        if (written && v.Keys == v.Values && v.Blocks > 0)
            throw AbiException.Argument("cache.keys and cache.values are the same memory.");
        // keys and values of a block often lie side by side: their extents may cross, their rows do not
        memory.Region("cache.keys", v.Keys, bytes, written);
        memory.Region("cache.values", v.Values, bytes, written, mayCross: "cache.keys");
        return (new LibraryView((nint)v.Keys, (nint)v.Values, type, v.BlockSize, v.Dim, v.BlockStride, v.SlotStride, v.HeadStride), v.KvHeads, v.Blocks);
    }

    private static (TensorView Query, LibraryDecodeOptions Options) Queries(Arguments memory, Tensor* query, int dim, DecodeOptions* options)
    {
        var view = Inputs.ToTensor(memory, "query", query);
        if (view.ElementType == ElementType.Opaque8)
            throw new AbiException(Status.Unsupported, "query holds opaque bytes, which cannot be computed with; convert it to float32, float16 or bfloat16 first.");
        if (view.Dim != dim)
            throw AbiException.Argument($"query has dimension {view.Dim}; the cache has {dim}.");
        if (options is null)
            return (view, new LibraryDecodeOptions());
        var o = Arguments.Read("options", options);
        Inputs.Reserved("options", o.Reserved);
        return (view, new LibraryDecodeOptions { Scale = o.Scale == 0 ? null : o.Scale, SoftCap = o.SoftCap == 0 ? null : o.SoftCap });
    }

    private static (BufferView<float> Output, BufferView<float>? LogSumExp) AttentionOutputs(Arguments memory, in TensorView query, float* output, long outputCount, float* logSumExp, long lseCount)
    {
        long heads = (long)query.Tokens * query.Heads;
        var to = memory.Output("output", output, outputCount, heads * query.Dim);
        return (to, logSumExp is null && lseCount == 0 ? null : memory.Output("log_sum_exp", logSumExp, lseCount, heads));
    }

    /// <summary>Checks the blocks that a row's tokens are in.</summary>
    private static void RequireBlocks(ReadOnlySpan<int> row, int index, int length, int blockSize, int blocks, HashSet<int>? seen)
    {
        if (length < 0 || length > (long)row.Length * blockSize)
            throw AbiException.Argument($"Row {index} holds {length} tokens; its {row.Length} blocks of {blockSize} hold 0 to {(long)row.Length * blockSize}.");
        foreach (int block in row[..(int)(((long)length + blockSize - 1) / blockSize)])
        {
            if (block < 0 || block >= blocks)
                throw AbiException.Argument($"Row {index} of tables lists block {block}; the cache has {blocks}.");
            if (seen?.Add(block) == false)
                throw AbiException.Argument($"Block {block} is in tables twice; each block has the tokens of one sequence.");
        }
    }
}
