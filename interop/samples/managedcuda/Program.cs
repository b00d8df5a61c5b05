using ManagedCuda;
using ManagedCuda.BasicTypes;
using ManagedCuda.CudaBlas;
using ManagedCuda.NVRTC;
using PInvokeSample;
using static PInvokeSample.Native;

// A host built on managedCuda: its own NVRTC kernel makes hidden states, its own cuBLAS call projects them to keys, and the library compresses the layer on the same
// context and stream. Handles pass as they are (Context.Pointer, Stream.Pointer, DevicePointer.Pointer); nothing is copied and nothing waits before the results are read.
const int tokens = 4096, kvHeads = 8, dim = 128, width = kvHeads * dim;

using var context = new PrimaryContext(0);
context.SetCurrent();
using var stream = new CudaStream();
using var hidden = new CudaDeviceVariable<float>(tokens * width);
using var weights = new CudaDeviceVariable<float>(width * width);
using var keys = new CudaDeviceVariable<float>(tokens * width);

const string source = """
    extern "C" __global__ void fill(float* x, int n, unsigned seed)
    {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i >= n)
            return;
        unsigned h = (i + seed) * 2654435761u;
        h ^= h >> 16;
        h *= 2246822519u;
        h ^= h >> 13;
        x[i] = (h >> 8) / 8388608.0f - 1.0f;
    }
    """;
using var compiler = new CudaRuntimeCompiler(source, "fill.cu");
compiler.Compile([]);
var fill = context.LoadKernelPTX(compiler.GetPTX(), "fill");
Fill(hidden, 1);
Fill(weights, 2);
var blas = new CudaBlas(stream.Stream);
blas.Gemm(Operation.NonTranspose, Operation.NonTranspose, width, tokens, width, 1f / width, weights, width, hidden, width, 0f, keys, width);

unsafe
{
    var open = new BackendOptions { StructSize = (uint)sizeof(BackendOptions), Kind = BackendCuda, Context = (void*)context.Context.Pointer, Stream = (void*)stream.Stream.Pointer };
    Check(compactor_backend_open(&open, out ulong backend));
    var options = new Options { StructSize = (uint)sizeof(Options) };
    Check(compactor_options_preset(PresetPaper, ref options));
    int* cuSeqlens = stackalloc int[] { 0, tokens };
    var shape = new Shape { StructSize = (uint)sizeof(Shape), Sequences = 1, CuSeqlens = cuSeqlens, KvHeads = kvHeads, HeadDim = dim };
    Check(compactor_plan_create(shape, options, new Budget { StructSize = (uint)sizeof(Budget), Unit = BudgetRetention, Amount = 0.5 }, 1, out ulong plan));
    var info = new PlanInfo { StructSize = (uint)sizeof(PlanInfo) };
    Check(compactor_plan_describe(plan, ref info));

    using var workspace = new CudaDeviceVariable<byte>((long)info.WorkspaceBytes);
    using var indices = new CudaDeviceVariable<int>(info.KeptPairs);
    using var offsets = new CudaDeviceVariable<int>(kvHeads + 1);
    using var keptKeys = new CudaDeviceVariable<float>(info.KeptPairs * dim);
    using var keptValues = new CudaDeviceVariable<float>(info.KeptPairs * dim);
    var tensor = new Tensor
    {
        StructSize = (uint)sizeof(Tensor),
        Data = Address(keys.DevicePointer),
        DataBytes = (ulong)tokens * width * sizeof(float),
        Tokens = tokens,
        Heads = kvHeads,
        Dim = dim,
        TokenStride = width,
        HeadStride = dim,
    };
    // a value projection would be another Gemm; the keys stand for both here, and leverage alone decides
    var layer = new Layer { StructSize = (uint)sizeof(Layer), Policy = PolicyLeverage, Key = &tensor, Value = &tensor, KeyPreRope = &tensor };
    Check(compactor_compress_layer(backend, plan, layer, Address(workspace.DevicePointer), info.WorkspaceBytes, (int*)Address(indices.DevicePointer), info.KeptPairs,
        (int*)Address(offsets.DevicePointer), kvHeads + 1, Address(keptKeys.DevicePointer), (ulong)info.KeptPairs * dim * sizeof(float), Address(keptValues.DevicePointer),
        (ulong)info.KeptPairs * dim * sizeof(float)));
    Check(compactor_backend_synchronize(backend)); // waits for the stream, and tells what scoring found
    blas.Dispose();

    int[] kept = indices, starts = offsets;
    float[] all = keys, survivors = keptKeys;
    for (int head = 0; head < kvHeads; head++)
        for (int i = starts[head]; i < starts[head + 1]; i++)
            if (!survivors.AsSpan(i * dim, dim).SequenceEqual(all.AsSpan((kept[i] * kvHeads + head) * dim, dim)))
                throw new InvalidOperationException($"row {i} is not token {kept[i]} of head {head}");
    Console.WriteLine($"{info.KeptPairs} of {info.Pairs} (token, head) pairs kept, each the row it says");
    Check(compactor_plan_destroy(plan));
    Check(compactor_backend_close(backend));
}

void Fill(CudaDeviceVariable<float> x, uint seed)
{
    int n = (int)x.Size;
    fill.BlockDimensions = 256;
    fill.GridDimensions = (n + 255) / 256;
    fill.RunAsync(stream.Stream, x.DevicePointer, n, seed);
}

static unsafe void* Address(CUdeviceptr pointer) => (void*)(ulong)pointer.Pointer;
