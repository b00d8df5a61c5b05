using System.Runtime.InteropServices;
using Compactor.Abi;
using Compactor.Gpu.Tests.Simt;
using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Gpu;
using Compactor.Native.Tests.Support;
using Xunit;
using Layer = Compactor.Abi.Layer;
using Status = Compactor.Abi.Status;
using Tensor = Compactor.Abi.Tensor;

namespace Compactor.Gpu.Tests.Interop;

/// <summary>The C interface over device memory: the exported functions on the GPU backend, on the emulator, beside the same calls on the CPU.</summary>
public sealed unsafe class AbiTests
{
    private const int Paper = 0, Blocks = 64;

    private readonly TestLayer _layer = TestLayer.Random(3, [150, 40], 4, 2, 64, ElementType.BFloat16);

    [ThreadStatic]
    private static Action? t_whenLogged;

    private delegate T Work<T>(AbiHost host);

    [Fact]
    public void Stages_keep_what_the_cpu_keeps_and_one_call_the_same()
    {
        var (cpu, gpu) = Both(Stages);
        Assert.Equal(cpu.Indices, gpu.Indices);
        Assert.Equal(cpu.Offsets, gpu.Offsets);
        Assert.Equal(cpu.Keys, gpu.Keys);
        Assert.Equal(cpu.Fused.Length, gpu.Fused.Length);
        for (int i = 0; i < cpu.Fused.Length; i++)
            Assert.True(cpu.Fused[i] == gpu.Fused[i] || Math.Abs(cpu.Fused[i] - gpu.Fused[i]) < 2e-3, $"score {i}: {cpu.Fused[i]} and {gpu.Fused[i]}");

        (float[] Fused, int[] Indices, int[] Offsets, byte[] Keys) Stages(AbiHost host)
        {
            ulong plan = host.Plan(_layer.Shape, Paper, 0.5);
            var info = host.Describe(plan);
            Tensor keyPreRope = host.Copy(_layer.Inputs.KeyPreRope!.Value), key = host.Copy(_layer.Inputs.Key), value = host.Copy(_layer.Inputs.Value), query = host.Copy(_layer.Inputs.Query!.Value);
            BufferView<float> leverage = host.New<float>(info.Pairs), attention = host.New<float>(info.Pairs), fused = host.New<float>(info.Pairs);
            BufferView<int> indices = host.New<int>(info.KeptPairs), offsets = host.New<int>(info.Sequences * info.KvHeads + 1);
            long bytes = info.KeptPairs * _layer.Shape.HeadDim * sizeof(ushort), nonFinite = -1;
            BufferView<byte> kept = host.New<byte>(bytes), keptKeys = host.New<byte>(bytes), keptValues = host.New<byte>(bytes);
            AbiHost.Ok(((delegate* unmanaged<ulong, ulong, Tensor*, Rotary*, float*, long, float*, long, Status>)&Exports.Leverage)(
                host.Handle, plan, &keyPreRope, null, null, 0, (float*)leverage.Address, leverage.Length));
            AbiHost.Ok(((delegate* unmanaged<ulong, ulong, Tensor*, Tensor*, float*, long, Status>)&Exports.AttentionScores)(
                host.Handle, plan, &query, &key, (float*)attention.Address, attention.Length));
            AbiHost.Ok(((delegate* unmanaged<ulong, ulong, float*, float*, Tensor*, float*, long, long*, Status>)&Exports.Fuse)(
                host.Handle, plan, (float*)leverage.Address, (float*)attention.Address, null, (float*)fused.Address, fused.Length, &nonFinite));
            Assert.Equal(0, nonFinite);
            AbiHost.Ok(((delegate* unmanaged<ulong, ulong, float*, long, int*, long, int*, long, Status>)&Exports.Select)(
                host.Handle, plan, (float*)fused.Address, fused.Length, (int*)indices.Address, indices.Length, (int*)offsets.Address, offsets.Length));
            AbiHost.Ok(((delegate* unmanaged<ulong, ulong, Tensor*, int*, long, int*, long, void*, ulong, Status>)&Exports.Compact)(
                host.Handle, plan, &key, (int*)indices.Address, indices.Length, (int*)offsets.Address, offsets.Length, (void*)kept.Address, (ulong)bytes));
            AbiHost.Ok(host.Synchronize());
            var result = (host.Read(fused), host.Read(indices), host.Read(offsets), host.Read(kept));

            var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &keyPreRope, Query = &query };
            BufferView<byte> workspace = host.NewWorkspace(info);
            BufferView<int> again = host.New<int>(info.KeptPairs), offsetsAgain = host.New<int>(offsets.Length);
            AbiHost.Ok(Compress(host, plan, layer, workspace, again, offsetsAgain, keptKeys, keptValues));
            AbiHost.Ok(host.Synchronize());
            Assert.Equal(result.Item2, host.Read(again));
            Assert.Equal(result.Item3, host.Read(offsetsAgain));
            Assert.Equal(result.Item4, host.Read(keptKeys));
            return result;
        }
    }

    [Fact]
    public void Queued_scoring_tells_of_bad_keys_where_the_host_waits()
    {
        var bad = TestLayer.From(new([0, 150, 190], 4, 2, 64, ElementType.Float32), [.. _layer.KeyPreRopeValues.Select((x, i) => i == (160 * 2 + 1) * 64 ? float.NaN : x)], _layer.QueryValues, _layer.KeyValues, _layer.ValueValues);
        using var host = OnDevice(out _);
        ulong plan = host.Plan(bad.Shape, Paper, 0.5);
        var info = host.Describe(plan);
        Tensor keyPreRope = host.Copy(bad.Inputs.KeyPreRope!.Value), key = host.Copy(bad.Inputs.Key), value = host.Copy(bad.Inputs.Value);
        var leverage = host.New<float>(info.Pairs);
        AbiHost.Ok(((delegate* unmanaged<ulong, ulong, Tensor*, Rotary*, float*, long, float*, long, Status>)&Exports.Leverage)(
            host.Handle, plan, &keyPreRope, null, null, 0, (float*)leverage.Address, leverage.Length));
        Told();

        var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &keyPreRope, Policy = 1 };
        AbiHost.Ok(Compress(host, plan, layer, host.NewWorkspace(info), host.New<int>(info.KeptPairs), host.New<int>(info.Sequences * info.KvHeads + 1), default, default));
        Told();

        // a call that ends a compaction has waited, and tells itself; the sequence is as it was
        var one = TestLayer.From(new([0, 150], 4, 2, 64, ElementType.Float32), bad.KeyPreRopeValues[(40 * 128)..], bad.QueryValues[(40 * 256)..], bad.KeyValues[(40 * 128)..], bad.ValueValues[(40 * 128)..]);
        ulong onePlan = host.Plan(one.Shape, Paper, 0.5), sequence = host.Sequence(one.Shape, Blocks), compaction;
        Tensor onePreRope = host.Copy(one.Inputs.KeyPreRope!.Value), oneKey = host.Copy(one.Inputs.Key), oneValue = host.Copy(one.Inputs.Value);
        var inputs = new Layer { StructSize = (uint)sizeof(Layer), Key = &oneKey, Value = &oneValue, KeyPreRope = &onePreRope, Policy = 1 };
        var compress = (delegate* unmanaged<ulong*, int, int, ulong, Layer*, int*, ulong*, Status>)&Exports.SequenceCompress;
        Assert.Equal(Status.NonFinite, compress(&sequence, 1, 0, onePlan, &inputs, null, null));
        Assert.Contains("at token 120 of sequence 0, head 1", AbiHost.LastError);
        AbiHost.Ok(compress(&sequence, 1, 0, onePlan, &inputs, null, &compaction));
        Assert.Equal(Status.NonFinite, ((delegate* unmanaged<ulong, Status>)&Exports.CompactionComplete)(compaction));
        AbiHost.Ok(((delegate* unmanaged<ulong, Status>)&Exports.CompactionCancel)(compaction));
        Assert.Equal([0, 0], host.Lengths(sequence, 2));
        AbiHost.Ok(host.Synchronize());

        void Told()
        {
            Assert.Equal(Status.NonFinite, host.Synchronize());
            Assert.Contains("at token 10 of sequence 1, head 1", AbiHost.LastError);
            AbiHost.Ok(host.Synchronize());
        }
    }

    [Fact]
    public void A_fault_of_stages_is_not_laid_on_the_compression_that_follows()
    {
        using var host = OnDevice(out _);
        var one = TestLayer.Random(4, [150], 4, 2, 64);
        ulong plan = host.Plan(one.Shape, Paper, 0.5), other = host.Plan(one.Shape, Paper, 0.25), sequence = host.Sequence(one.Shape, Blocks);
        var bad = TestLayer.From(one.Shape, [.. one.KeyPreRopeValues.Select(_ => float.PositiveInfinity)], one.QueryValues, one.KeyValues, one.ValueValues);
        Tensor badKeys = host.Copy(bad.Inputs.KeyPreRope!.Value), keyPreRope = host.Copy(one.Inputs.KeyPreRope!.Value), key = host.Copy(one.Inputs.Key), value = host.Copy(one.Inputs.Value);
        var leverage = host.New<float>(one.Shape.Pairs);
        AbiHost.Ok(((delegate* unmanaged<ulong, ulong, Tensor*, Rotary*, float*, long, float*, long, Status>)&Exports.Leverage)(
            host.Handle, plan, &badKeys, null, null, 0, (float*)leverage.Address, leverage.Length));
        var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &keyPreRope, Policy = 1 };
        AbiHost.Ok(((delegate* unmanaged<ulong*, int, int, ulong, Layer*, int*, ulong*, Status>)&Exports.SequenceCompress)(&sequence, 1, 0, other, &layer, null, null));
        Assert.Equal(Status.NonFinite, host.Synchronize());
    }

    [Fact]
    public void A_fault_of_a_call_that_failed_midway_is_not_laid_on_the_next()
    {
        using var host = OnDevice(out _);
        ulong plan = host.Plan(_layer.Shape, Paper, 0.5);
        var info = host.Describe(plan);
        var bad = TestLayer.From(_layer.Shape, [.. _layer.KeyPreRopeValues.Select(_ => float.NaN)], _layer.QueryValues, _layer.KeyValues, _layer.ValueValues);
        Tensor badKeys = host.Copy(bad.Inputs.KeyPreRope!.Value), keyPreRope = host.Copy(_layer.Inputs.KeyPreRope!.Value), key = host.Copy(_layer.Inputs.Key), value = host.Copy(_layer.Inputs.Value);
        Tensor query = host.Copy(_layer.Inputs.Query!.Value), misaligned = query;
        misaligned.Data = (byte*)query.Data + sizeof(ushort);
        BufferView<byte> workspace = host.NewWorkspace(info);
        BufferView<int> indices = host.New<int>(info.KeptPairs), offsets = host.New<int>(info.Sequences * info.KvHeads + 1);
        var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &badKeys, Query = &misaligned };
        Assert.NotEqual(Status.Ok, Compress(host, plan, layer, workspace, indices, offsets, default, default));
        layer.KeyPreRope = &keyPreRope;
        layer.Query = &query;
        AbiHost.Ok(Compress(host, plan, layer, workspace, indices, offsets, default, default));
        AbiHost.Ok(host.Synchronize());
    }

    [Fact]
    public void A_fault_of_a_log_callback_is_not_laid_on_the_call_that_logs()
    {
        using var host = OnDevice(out _);
        var one = TestLayer.Random(4, [150], 4, 2, 64);
        ulong plan = host.Plan(one.Shape, Paper, 0.5), other = host.Plan(one.Shape, Paper, 0.25), sequence = host.Sequence(one.Shape, Blocks);
        var bad = TestLayer.From(one.Shape, [.. one.KeyPreRopeValues.Select(_ => float.NaN)], one.QueryValues, one.KeyValues, one.ValueValues);
        Tensor badKeys = host.Copy(bad.Inputs.KeyPreRope!.Value), keyPreRope = host.Copy(one.Inputs.KeyPreRope!.Value), key = host.Copy(one.Inputs.Key), value = host.Copy(one.Inputs.Value);
        var leverage = host.New<float>(one.Shape.Pairs);
        var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &keyPreRope };
        var setLog = (delegate* unmanaged<nint, nint, Status>)&Exports.SetLog;
        var inCallback = Status.Internal;
        Tensor* keys = &badKeys;
        t_whenLogged = () => inCallback = ((delegate* unmanaged<ulong, ulong, Tensor*, Rotary*, float*, long, float*, long, Status>)&Exports.Leverage)(
            host.Handle, plan, keys, null, null, 0, (float*)leverage.Address, leverage.Length);
        AbiHost.Ok(setLog((nint)(delegate* unmanaged<nint, int, byte*, void>)&Logged, 0));
        var told = ((delegate* unmanaged<ulong*, int, int, ulong, Layer*, int*, ulong*, Status>)&Exports.SequenceCompress)(&sequence, 1, 0, other, &layer, null, null);
        AbiHost.Ok(setLog(0, 0));
        t_whenLogged = null;
        AbiHost.Ok(inCallback);
        AbiHost.Ok(told);
        Assert.Equal(Status.NonFinite, host.Synchronize());
    }

    [Fact]
    public void Scores_that_are_not_finite_are_counted_for_who_asks()
    {
        var (cpu, gpu) = Both(host =>
        {
            ulong plan = host.Plan(_layer.Shape, Paper, 0.5);
            long pairs = host.Describe(plan).Pairs, nonFinite = -1;
            BufferView<float> leverage = host.New<float>(pairs), fused = host.New<float>(pairs);
            var scores = new float[pairs];
            scores[7] = scores[8] = float.NaN;
            host.Write(scores, leverage);
            AbiHost.Ok(((delegate* unmanaged<ulong, ulong, float*, float*, Tensor*, float*, long, long*, Status>)&Exports.Fuse)(
                host.Handle, plan, (float*)leverage.Address, null, null, (float*)fused.Address, pairs, &nonFinite));
            AbiHost.Ok(host.Synchronize());
            return nonFinite;
        });
        Assert.True(cpu > 0);
        Assert.Equal(cpu, gpu);
    }

    [Fact]
    public void A_paged_cache_holds_attends_and_exports_what_the_cpu_does()
    {
        var (cpu, gpu) = Both(Paged);
        Assert.Equal(cpu.Lengths, gpu.Lengths);
        Assert.Equal(cpu.Keys, gpu.Keys);
        Assert.Equal(cpu.Positions, gpu.Positions);
        for (int i = 0; i < cpu.Output.Length; i++)
            Assert.True(Math.Abs(cpu.Output[i] - gpu.Output[i]) < 1e-4, $"output {i}: {cpu.Output[i]} and {gpu.Output[i]}");

        static (int[] Lengths, byte[] Keys, int[] Positions, float[] Output) Paged(AbiHost host)
        {
            var one = TestLayer.Random(5, [150], 4, 2, 64, ElementType.BFloat16);
            ulong plan = host.Plan(one.Shape, Paper, 0.5), sequence = host.Sequence(one.Shape, Blocks), compaction, tables;
            Tensor keyPreRope = host.Copy(one.Inputs.KeyPreRope!.Value), key = host.Copy(one.Inputs.Key), value = host.Copy(one.Inputs.Value), query = host.Copy(one.Inputs.Query!.Value);
            var layer = new Layer { StructSize = (uint)sizeof(Layer), Key = &key, Value = &value, KeyPreRope = &keyPreRope, Query = &query };
            AbiHost.Ok(((delegate* unmanaged<ulong*, int, int, ulong, Layer*, int*, ulong*, Status>)&Exports.SequenceCompress)(&sequence, 1, 0, plan, &layer, null, &compaction));
            AbiHost.Ok(host.Synchronize());
            int ready = -1;
            AbiHost.Ok(((delegate* unmanaged<ulong, int*, Status>)&Exports.CompactionReady)(compaction, &ready));
            Assert.Equal(1, ready);
            AbiHost.Ok(((delegate* unmanaged<ulong, Status>)&Exports.CompactionComplete)(compaction));
            int[] lengths = host.Lengths(sequence, 2);
            int n = lengths[1];
            byte[] keys = new byte[n * 64 * sizeof(ushort)], values = new byte[keys.Length];
            int[] positions = new int[n];
            fixed (byte* k = keys, v = values)
            fixed (int* p = positions)
                AbiHost.Ok(((delegate* unmanaged<ulong, int, int, void*, ulong, void*, ulong, int*, int, Status>)&Exports.SequenceRead)(
                    sequence, 0, 1, k, (ulong)keys.Length, v, (ulong)values.Length, p, n));

            var step = query with { Tokens = 1 };
            BufferView<float> output = host.New<float>(4 * 64), raw = host.New<float>(4 * 64);
            AbiHost.Ok(((delegate* unmanaged<ulong*, int, int, Tensor*, DecodeOptions*, float*, long, float*, long, Status>)&Exports.SequenceAttend)(
                &sequence, 1, 0, &step, null, (float*)output.Address, output.Length, null, 0));

            AbiHost.Ok(((delegate* unmanaged<ulong*, int, int, ulong*, Status>)&Exports.TablesCreate)(&sequence, 1, 0, &tables));
            var info = new TablesInfo { StructSize = (uint)sizeof(TablesInfo) };
            AbiHost.Ok(((delegate* unmanaged<ulong, TablesInfo*, Status>)&Exports.TablesDescribe)(tables, &info));
            Assert.Equal(lengths, new ReadOnlySpan<int>(info.HostLengths, info.Rows).ToArray());
            Assert.Equal(lengths, host.Read(new BufferView<int>((nint)info.DeviceLengths, info.Rows)));
            Assert.Equal(new ReadOnlySpan<int>(info.HostTables, info.Rows * info.RowStride).ToArray(), host.Read(new BufferView<int>((nint)info.DeviceTables, info.Rows * info.RowStride)));
            Assert.Equal(new ReadOnlySpan<int>(info.HostIndices, info.Pages).ToArray(), host.Read(new BufferView<int>((nint)info.DeviceIndices, info.Pages)));
            // a kernel of the host's would read the same tables
            var view = host.CacheView(sequence, one.Shape, Blocks);
            AbiHost.Ok(((delegate* unmanaged<ulong, PagedView*, Tensor*, int*, long, int, int*, int, DecodeOptions*, float*, long, float*, long, Status>)&Exports.DecodeAttention)(
                host.Handle, &view, &step, info.DeviceTables, (long)info.Rows * info.RowStride, info.RowStride, info.DeviceLengths, info.Rows, null, (float*)raw.Address, raw.Length, null, 0));
            Assert.Equal(host.Read(output), host.Read(raw));
            AbiHost.Ok(((delegate* unmanaged<ulong, Status>)&Exports.TablesDestroy)(tables));
            return (lengths, keys, positions, host.Read(output));
        }
    }

    [UnmanagedCallersOnly]
    private static void Logged(nint userData, int level, byte* message) => t_whenLogged?.Invoke();

    private static Status Compress(AbiHost host, ulong plan, Layer layer, BufferView<byte> workspace, BufferView<int> indices, BufferView<int> offsets, BufferView<byte> keys, BufferView<byte> values) =>
        ((delegate* unmanaged<ulong, ulong, Layer*, void*, ulong, int*, long, int*, long, void*, ulong, void*, ulong, Status>)&Exports.CompressLayer)(
            host.Handle, plan, &layer, (void*)workspace.Address, (ulong)workspace.Length, (int*)indices.Address, indices.Length, (int*)offsets.Address, offsets.Length,
            (void*)keys.Address, (ulong)keys.Length, (void*)values.Address, (ulong)values.Length);

    private static AbiHost OnDevice(out GpuDriver driver)
    {
        driver = Device.OpenDriver();
        return new AbiHost(new GpuBackend(driver, driver.CreateStream()));
    }

    private static (T Cpu, T Gpu) Both<T>(Work<T> work)
    {
        T cpu, gpu;
        using (var host = new AbiHost(new CpuBackend()))
            cpu = work(host);
        GpuDriver driver;
        using (var host = OnDevice(out driver))
            gpu = work(host);
        if (driver is SimtDriver counting)
            Assert.Equal(0, counting.Allocations);
        return (cpu, gpu);
    }
}
