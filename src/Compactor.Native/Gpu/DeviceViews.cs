using System.Runtime.InteropServices;
using Compactor.Native.Paging;

namespace Compactor.Native.Gpu;

/// <summary>Mirror of <c>Tensor</c> in cuda/tensor.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DeviceTensor(in TensorView view)
{
    public ulong Address = (ulong)view.Address;
    public long TokenStride = view.TokenStride, HeadStride = view.HeadStride, SequenceStride = view.SequenceStride;
}

/// <summary>Mirror of <c>Paged</c> in cuda/tensor.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DevicePaged(in PagedView view, BufferView<int> positions)
{
    public ulong Keys = (ulong)view.Keys, Values = (ulong)view.Values;
    public long BlockStride = view.BlockStride, SlotStride = view.SlotStride, HeadStride = view.HeadStride;
    public ulong Positions = (ulong)positions.Address;
}

/// <summary>Mirror of <c>PagedTables</c> in cuda/tensor.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DevicePagedTables(PagedTables tables)
{
    public ulong Tables = (ulong)tables.Tables.Address, Lengths = (ulong)tables.Lengths.Address;
    public int RowStride = tables.RowStride, Rows = (int)tables.Lengths.Length;
}

/// <summary>Mirror of <c>PagedTargets</c> in cuda/tensor.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DevicePagedTargets(PagedTargets targets)
{
    public ulong Blocks = (ulong)targets.Blocks.Address, Listed = (ulong)targets.Listed.Address, Starts = (ulong)targets.Starts.Address,
        Reserved = (ulong)targets.Reserved.Address, ReservedStarts = (ulong)targets.ReservedStarts.Address;
    public int KvHeads = targets.KvHeads, RowStride = targets.RowStride;
}
