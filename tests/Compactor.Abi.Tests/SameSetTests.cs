using System.Runtime.InteropServices;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;
using Xunit;
using static PInvokeSample.Native;
using LibraryBudget = Compactor.Native.Compression.Budget;

namespace Compactor.Abi.Tests;

/// <summary>The command line, the managed library and the C interface keep the same pairs of the same dump, bit for bit, at one vector width.</summary>
public sealed unsafe class SameSetTests : IDisposable
{
    private static readonly string Dump = Path.Combine(AppContext.BaseDirectory, "data", "mixed.safetensors");

    private readonly string _output = Path.Combine(Path.GetTempPath(), $"compactor-same-set-{Guid.NewGuid():N}.safetensors");

    public void Dispose() => File.Delete(_output);

    [Theory]
    [InlineData("paper", 0, 0.5)]
    [InlineData("kvpress", 1, 0.3)]
    [InlineData("compactor-vllm", 2, 0.25)]
    public void Kept_indices_are_the_same(string preset, int abiPreset, double retention)
    {
        // compiled ahead of time the library computes with 256 bits; the tool, compiled as it runs, is held to them
        Command.Run("dotnet", ["exec", Path.Combine(AppContext.BaseDirectory, "compactor.dll"), "compress", Dump, "--preset", preset, "--retention", $"{retention}", "--out", _output, "--json"],
            variables: ("DOTNET_EnableAVX512", "0"));
        using var dump = KvDump.Open(Dump);
        using var tool = SafetensorsFile.Open(_output);
        using var managed = new CpuBackend(width: SimdWidth.Bits256);
        foreach (var layer in dump.Layers)
        {
            var plan = new LayerPlan(layer.Shape, CompressionPresets.ByName[preset], LibraryBudget.Retention(retention));
            using var selection = LayerCompressor.Select(managed, plan, layer.Inputs);
            int[] indices = selection.KeptIndices.View.AsSpan().ToArray(), offsets = selection.KeptOffsets.View.AsSpan().ToArray();

            Assert.Equal(indices, Ints(tool, $"layers.{layer.Index}.kept_indices"));
            Assert.Equal(offsets, Ints(tool, $"layers.{layer.Index}.kept_offsets"));

            var (abiIndices, abiOffsets, abiKeys) = OverC(layer, abiPreset, retention);
            Assert.Equal(indices, abiIndices);
            Assert.Equal(offsets, abiOffsets);
            using var keys = selection.Compact(layer.Inputs.Key);
            Assert.Equal(keys.View.AsSpan().ToArray(), abiKeys);
        }
    }

    private static int[] Ints(SafetensorsFile file, string name) => MemoryMarshal.Cast<byte, int>(file.Tensors[name].Bytes()).ToArray();

    private static (int[] Indices, int[] Offsets, byte[] Keys) OverC(KvDumpLayer layer, int preset, double retention)
    {
        Environment.SetEnvironmentVariable("COMPACTOR_LIBRARY", NativeBuild.Library);
        var open = new PInvokeSample.BackendOptions { StructSize = (uint)sizeof(PInvokeSample.BackendOptions), Kind = BackendCpu };
        Check(compactor_backend_open(&open, out ulong backend));
        var options = new PInvokeSample.Options { StructSize = (uint)sizeof(PInvokeSample.Options) };
        Check(compactor_options_preset(preset, ref options));
        int[] cuSeqlens = [.. layer.Shape.CuSeqlens];
        ulong plan;
        fixed (int* cu = cuSeqlens)
        {
            var shape = new PInvokeSample.Shape
            {
                StructSize = (uint)sizeof(PInvokeSample.Shape),
                Sequences = layer.Shape.Sequences,
                CuSeqlens = cu,
                QueryHeads = layer.Shape.QueryHeads,
                KvHeads = layer.Shape.KvHeads,
                HeadDim = layer.Shape.HeadDim,
                ElementType = (int)layer.Shape.ElementType,
                Layer = layer.Index,
            };
            var budget = new PInvokeSample.Budget { StructSize = (uint)sizeof(PInvokeSample.Budget), Amount = retention };
            Check(compactor_plan_create(shape, options, budget, 1, out plan));
        }
        var info = new PInvokeSample.PlanInfo { StructSize = (uint)sizeof(PInvokeSample.PlanInfo) };
        Check(compactor_plan_describe(plan, ref info));
        var (indices, offsets) = (new int[info.KeptPairs], new int[info.Sequences * info.KvHeads + 1]);
        byte[] keys = new byte[info.KeptPairs * layer.Shape.BytesPerPair / 2], values = new byte[keys.Length];
        void* workspace = NativeMemory.AlignedAlloc((nuint)info.WorkspaceBytes, LayerMemory.Alignment);
        PInvokeSample.Tensor key = Tensor(layer.Inputs.Key), value = Tensor(layer.Inputs.Value), preRope = Tensor(layer.Inputs.KeyPreRope!.Value), query = Tensor(layer.Inputs.Query!.Value);
        var inputs = new PInvokeSample.Layer { StructSize = (uint)sizeof(PInvokeSample.Layer), Key = &key, Value = &value, KeyPreRope = &preRope, Query = &query };
        fixed (int* i = indices, o = offsets)
        fixed (byte* k = keys, v = values)
            Check(compactor_compress_layer(backend, plan, inputs, workspace, info.WorkspaceBytes, i, indices.Length, o, offsets.Length, k, (ulong)keys.Length, v, (ulong)values.Length));
        NativeMemory.AlignedFree(workspace);
        Check(compactor_plan_destroy(plan));
        Check(compactor_backend_close(backend));
        return (indices, offsets, keys);
    }

    private static PInvokeSample.Tensor Tensor(in Native.TensorView view) => new()
    {
        StructSize = (uint)sizeof(PInvokeSample.Tensor),
        ElementType = (int)view.ElementType,
        Data = (void*)view.Address,
        DataBytes = (ulong)((view.Tokens - 1) * view.TokenStride + (view.Heads - 1) * view.HeadStride + view.Dim) * 2,
        Tokens = view.Tokens,
        Heads = view.Heads,
        Dim = view.Dim,
        TokenStride = view.TokenStride,
        HeadStride = view.HeadStride,
        SequenceStride = view.SequenceStride,
    };
}
