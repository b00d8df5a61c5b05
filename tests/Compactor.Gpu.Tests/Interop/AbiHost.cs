using System.Runtime.InteropServices;
using Compactor.Abi;
using Compactor.Native;
using Xunit;
using Backend = Compactor.Abi.Backend;
using Budget = Compactor.Abi.Budget;
using Status = Compactor.Abi.Status;
using Tensor = Compactor.Abi.Tensor;

namespace Compactor.Gpu.Tests.Interop;

/// <summary>A host of the C interface on a backend of the test's: it calls the exported functions themselves, by address, and keeps what it made.</summary>
internal sealed unsafe class AbiHost : IDisposable
{
    private readonly KvBackend _backend;
    private readonly List<IDisposable> _memory = [];
    private readonly List<Action> _ends = [];

    public AbiHost(KvBackend backend)
    {
        _backend = backend;
        Handle = Handles.Add(HandleKind.Backend, new Backend(backend));
    }

    public ulong Handle { get; }

    public static string LastError => Marshal.PtrToStringUTF8((nint)((delegate* unmanaged<byte*>)&Exports.LastError)())!;

    public static void Ok(Status status) => Assert.True(status == Status.Ok, $"{status}: {LastError}");

    /// <summary>Backend memory with the bytes of a tensor in host memory.</summary>
    public Tensor Copy(in TensorView host)
    {
        long bytes = (long)host.Tokens * host.Heads * host.Dim * host.ElementType.Size();
        var memory = New<byte>(bytes);
        _backend.Upload(new ReadOnlySpan<byte>((void*)host.Address, checked((int)bytes)), memory);
        return new Tensor
        {
            StructSize = (uint)sizeof(Tensor),
            ElementType = (int)host.ElementType,
            Data = (void*)memory.Address,
            DataBytes = (ulong)bytes,
            Tokens = host.Tokens,
            Heads = host.Heads,
            Dim = host.Dim,
            TokenStride = host.TokenStride,
            HeadStride = host.HeadStride,
        };
    }

    public BufferView<T> New<T>(long length) where T : unmanaged
    {
        var memory = _backend.Allocate<T>(length);
        _memory.Add(memory);
        return memory.View;
    }

    /// <summary>On its boundary, which is wider than that of a backend's own memory.</summary>
    public BufferView<byte> NewWorkspace(in PlanInfo info)
    {
        long bytes = (long)info.WorkspaceBytes, boundary = Native.Compression.LayerMemory.Alignment;
        var memory = New<byte>(bytes + boundary);
        return memory.Slice((boundary - memory.Address % boundary) % boundary, bytes);
    }

    public void Write<T>(ReadOnlySpan<T> values, BufferView<T> to) where T : unmanaged => _backend.Upload(values, to);

    public T[] Read<T>(BufferView<T> memory) where T : unmanaged => _backend.Read(memory);

    public Status Synchronize() => ((delegate* unmanaged<ulong, Status>)&Exports.BackendSynchronize)(Handle);

    public ulong Plan(Native.Compression.LayerShape shape, int preset, double retention)
    {
        var options = new Options { StructSize = (uint)sizeof(Options) };
        Ok(((delegate* unmanaged<int, Options*, Status>)&Exports.OptionsPreset)(preset, &options));
        int[] cuSeqlens = [.. shape.CuSeqlens];
        ulong plan;
        fixed (int* cu = cuSeqlens)
        {
            var given = new Shape
            {
                StructSize = (uint)sizeof(Shape),
                Sequences = shape.Sequences,
                CuSeqlens = cu,
                QueryHeads = shape.QueryHeads,
                KvHeads = shape.KvHeads,
                HeadDim = shape.HeadDim,
                ElementType = (int)shape.ElementType,
            };
            var budget = new Budget { StructSize = (uint)sizeof(Budget), Amount = retention };
            Ok(((delegate* unmanaged<Shape*, Options*, Budget*, int, ulong*, Status>)&Exports.PlanCreate)(&given, &options, &budget, 1, &plan));
        }
        EndWith(&Exports.PlanDestroy, plan);
        return plan;
    }

    public PlanInfo Describe(ulong plan)
    {
        var info = new PlanInfo { StructSize = (uint)sizeof(PlanInfo) };
        Ok(((delegate* unmanaged<ulong, PlanInfo*, Status>)&Exports.PlanDescribe)(plan, &info));
        return info;
    }

    /// <summary>A sequence in a cache of its own.</summary>
    public ulong Sequence(Native.Compression.LayerShape shape, int blocks)
    {
        var options = new CacheOptions
        {
            StructSize = (uint)sizeof(CacheOptions),
            Layers = 1,
            KvHeads = shape.KvHeads,
            HeadDim = shape.HeadDim,
            ElementType = (int)shape.ElementType,
            Blocks = blocks,
            BlockSize = 16,
        };
        ulong cache, sequence;
        Ok(((delegate* unmanaged<ulong, CacheOptions*, ulong*, Status>)&Exports.CacheCreate)(Handle, &options, &cache));
        EndWith(&Exports.CacheDestroy, cache);
        Ok(((delegate* unmanaged<ulong, ulong*, Status>)&Exports.SequenceCreate)(cache, &sequence));
        EndWith(&Exports.SequenceFree, sequence);
        return sequence;
    }

    /// <summary>The cache of a sequence as a host that attends by itself sees it.</summary>
    public PagedView CacheView(ulong sequence, Native.Compression.LayerShape shape, int blocks)
    {
        using var used = Handles.Use<Sequence>(sequence, HandleKind.Sequence);
        var info = new CacheInfo { StructSize = (uint)sizeof(CacheInfo) };
        Ok(((delegate* unmanaged<ulong, CacheInfo*, Status>)&Exports.CacheDescribe)(used.Value.CacheHandle, &info));
        Assert.Equal(blocks, info.Blocks);
        return new PagedView
        {
            StructSize = (uint)sizeof(PagedView),
            ElementType = (int)shape.ElementType,
            Keys = info.Keys,
            Values = info.Values,
            Bytes = (ulong)blocks * (ulong)info.BlockSize * (ulong)shape.HeadDim * (ulong)shape.ElementType.Size(),
            Blocks = blocks,
            BlockSize = info.BlockSize,
            KvHeads = shape.KvHeads,
            Dim = shape.HeadDim,
            BlockStride = (long)info.BlockSize * shape.HeadDim,
            SlotStride = shape.HeadDim,
        };
    }

    public int[] Lengths(ulong sequence, int heads)
    {
        int[] lengths = new int[heads];
        fixed (int* to = lengths)
            Ok(((delegate* unmanaged<ulong, int, int*, int, int*, Status>)&Exports.SequenceLengths)(sequence, 0, to, heads, null));
        return lengths;
    }

    /// <summary>Closes all, the last made first; the backend goes with its handle.</summary>
    public void Dispose()
    {
        foreach (var memory in _memory)
            memory.Dispose();
        for (int i = _ends.Count - 1; i >= 0; i--)
            _ends[i]();
        Ok(((delegate* unmanaged<ulong, Status>)&Exports.BackendClose)(Handle));
    }
    private void EndWith(delegate* unmanaged<ulong, Status> end, ulong handle) => _ends.Add(() => Ok(end(handle)));
}
