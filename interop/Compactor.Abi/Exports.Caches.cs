using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Paging;

namespace Compactor.Abi;

internal static unsafe partial class Exports
{
    [UnmanagedCallersOnly(EntryPoint = "compactor_cache_create")]
    public static Status CacheCreate(ulong backend, CacheOptions* options, ulong* cache) => Boundary.Run(() =>
    {
        using var on = Handles.Use<Backend>(backend, HandleKind.Backend);
        Arguments.CheckResult("cache", cache);
        var o = Arguments.Read("options", options);
        Inputs.Reserved("options", o.Reserved);
        var pages = new PagedCache(on.Value.Operations, new PagedCacheOptions
        {
            Layers = o.Layers,
            KvHeads = o.KvHeads,
            HeadDim = o.HeadDim,
            ElementType = Inputs.Constant<ElementType>("options.element_type", o.ElementType),
            Blocks = o.Blocks,
            BlockSize = o.BlockSize == 0 ? PagedCacheOptions.DefaultBlockSize : o.BlockSize,
        });
        *cache = Handles.AddOrDispose(HandleKind.Cache, new Cache(pages, on.Value, backend), pages, backend);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_cache_describe")]
    public static Status CacheDescribe(ulong cache, CacheInfo* info) => Boundary.Run(() =>
    {
        using var used = Handles.Use<Cache>(cache, HandleKind.Cache);
        Arguments.CheckStruct("info", info);
        var pages = used.Value.Pages;
        Arguments.Fill(info, new CacheInfo
        {
            BlockSize = pages.Options.BlockSize,
            Blocks = pages.Blocks,
            FreeBlocks = pages.FreeBlocks,
            UnusedSlots = pages.UnusedSlots,
            Keys = (void*)pages.View.Keys,
            Values = (void*)pages.View.Values,
            Positions = (int*)pages.Positions.Address,
        });
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_cache_destroy")]
    public static Status CacheDestroy(ulong cache) => Boundary.Run(() => Handles.Close<Cache>(cache, HandleKind.Cache, closed => closed.Pages.Dispose()));

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_create")]
    public static Status SequenceCreate(ulong cache, ulong* sequence) => Boundary.Run(() =>
    {
        using var used = Handles.Use<Cache>(cache, HandleKind.Cache);
        Arguments.CheckResult("sequence", sequence);
        var pages = used.Value.Pages.CreateSequence();
        *sequence = Handles.AddOrDispose(HandleKind.Sequence, new Sequence(pages, used.Value, cache), pages, cache);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_fork")]
    public static Status SequenceFork(ulong sequence, ulong* fork) => Boundary.Run(() =>
    {
        using var used = Handles.Own<Sequence>(sequence, HandleKind.Sequence);
        Arguments.CheckResult("fork", fork);
        var pages = used.Value.Pages.Fork();
        *fork = Handles.AddOrDispose(HandleKind.Sequence, used.Value with { Pages = pages }, pages, used.Value.CacheHandle);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_free")]
    public static Status SequenceFree(ulong sequence) => Boundary.Run(() => Handles.Close<Sequence>(sequence, HandleKind.Sequence, closed => closed.Pages.Dispose()));

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_reserve")]
    public static Status SequenceReserve(ulong sequence, int layer, int tokens) => Boundary.Run(() =>
    {
        using var used = Handles.Own<Sequence>(sequence, HandleKind.Sequence);
        used.Value.Pages.Reserve(layer, tokens);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_store")]
    public static Status SequenceStore(ulong sequence, int layer, Tensor* key, Tensor* value, int firstToken, int tokens, int firstPosition) => Boundary.Run(() =>
    {
        using var used = Handles.Own<Sequence>(sequence, HandleKind.Sequence);
        var memory = new Arguments();
        used.Value.Pages.Store(layer, Inputs.ToTensor(memory, "key", key), Inputs.ToTensor(memory, "value", value), firstToken, tokens, firstPosition);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_append")]
    public static Status SequenceAppend(ulong* sequences, int count, int layer, Tensor* key, Tensor* value, int* positions) => Boundary.Run(() =>
    {
        using var batch = new Batch(sequences, count);
        var memory = new Arguments();
        CacheSequence.Append(batch.Sequences, layer, Inputs.ToTensor(memory, "key", key), Inputs.ToTensor(memory, "value", value),
            Arguments.Copy("positions", positions, count, count));
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_lengths")]
    public static Status SequenceLengths(ulong sequence, int layer, int* lengths, int count, int* positionEnd) => Boundary.Run(() =>
    {
        using var used = Handles.Own<Sequence>(sequence, HandleKind.Sequence);
        var memory = new Arguments();
        var held = used.Value.Pages.Lengths(layer);
        var to = memory.Output("lengths", lengths, count, held.Length);
        if (positionEnd is not null)
            memory.Output("position_end", positionEnd, 1, 1).AsSpan()[0] = used.Value.Pages.PositionEnd(layer);
        held.CopyTo(to.AsSpan());
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_sequence_read")]
    public static Status SequenceRead(ulong sequence, int layer, int head, void* keys, ulong keyBytes, void* values, ulong valueBytes, int* positions, int positionCount) =>
        Boundary.Run(() =>
        {
            using var used = Handles.Own<Sequence>(sequence, HandleKind.Sequence);
            var pages = used.Value.Pages;
            var options = pages.Cache.Options;
            var lengths = pages.Lengths(layer);
            if (head < 0 || head >= lengths.Length)
                throw AbiException.Argument($"There is no head {head}; the cache has {lengths.Length}.");
            var memory = new Arguments();
            int size = options.ElementType.Size();
            long bytes = (long)lengths[head] * options.HeadDim * size;
            var keysOut = memory.OutputBytes("keys", keys, keyBytes, bytes, size);
            var valuesOut = memory.OutputBytes("values", values, valueBytes, bytes, size);
            var positionsOut = memory.Output("positions", positions, positionCount, lengths[head]);
            var (readPositions, readKeys, readValues) = pages.Read(layer, head);
            readKeys.CopyTo(keysOut.AsSpan());
            readValues.CopyTo(valuesOut.AsSpan());
            readPositions.CopyTo(positionsOut.AsSpan());
        });
}
