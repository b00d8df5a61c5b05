using System.Runtime.InteropServices;
using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.OnDevice;

/// <summary>What only a real driver has: contexts and streams of somebody else, machine code that came with the application.</summary>
public unsafe class DriverTests
{
    private readonly TestLayer _layer = TestLayer.Random(1, [700, 300], 8, 2, 128, ElementType.BFloat16);

    private LayerPlan Plan => new(_layer.Shape, CompressionPresets.Paper, Budget.Retention(0.4));

    [Fact]
    public void A_context_and_stream_of_the_caller_are_used_and_stay()
    {
        Device.RequireGpu("has contexts of others");
        int[] expected = Kept(Device.Options);
        string place = LibrarySearch.Driver(SearchEnvironment.Current).Found!.Place;
        var driver = new DriverApi(place);
        nint library = NativeLibrary.Load(place), context = 0, stream = 0, current = 0;
        int device = 0;
        driver.Check(driver.Init(0), "cuInit");
        driver.Check(driver.DeviceGet(&device, 0), "cuDeviceGet");
        driver.Check(((delegate* unmanaged<nint*, uint, int, int>)NativeLibrary.GetExport(library, "cuCtxCreate_v2"))(&context, 0, device), "cuCtxCreate");
        try
        {
            driver.Check(driver.StreamCreate(&stream, 1), "cuStreamCreate");
            driver.Check(driver.CtxPopCurrent(&current), "cuCtxPopCurrent");
            Assert.Equal(context, current);
            foreach (bool beside in (bool[])[false, true])
            {
                Assert.Equal(expected, Kept(Device.Options with { Context = context, Stream = stream, SideStream = beside }));
                driver.Check(driver.CtxPushCurrent(context), "cuCtxPushCurrent after the backend was closed");
                driver.Check(driver.StreamSynchronize(stream), "cuStreamSynchronize after the backend was closed");
                driver.Check(driver.CtxPopCurrent(&current), "cuCtxPopCurrent");
            }
        }
        finally
        {
            driver.Check(((delegate* unmanaged<nint, int>)NativeLibrary.GetExport(library, "cuCtxDestroy_v2"))(context), "cuCtxDestroy");
        }
    }

    [Fact]
    public void Kernels_that_came_with_the_application_need_no_compiler_and_keep_the_same()
    {
        Device.RequireGpu("runs machine code");
        string folder = Path.Combine(AppContext.BaseDirectory, "compactor-kernels");
        Assert.SkipUnless(Directory.Exists(folder), $"{folder} is not there: these tests are not run from the payload that tests/gpu/pack.sh makes.");
        var shipped = new CudaOptions
        {
            KernelFolders = [folder],
            CacheFolder = "",
            // An explicit path that holds nothing: none is taken from elsewhere.
            Search = SearchEnvironment.Current with { NvrtcPath = Path.Combine(folder, "no-nvrtc") },
        };
        Assert.Equal(Kept(Device.Options), Kept(shipped));
    }

    private int[] Kept(CudaOptions options)
    {
        using var backend = GpuBackend.Open(options);
        using BackendBuffer<byte> pre = Copy(_layer.Inputs.KeyPreRope!.Value), query = Copy(_layer.Inputs.Query!.Value), key = Copy(_layer.Inputs.Key), value = Copy(_layer.Inputs.Value);
        var inputs = _layer.Inputs with
        {
            KeyPreRope = _layer.Inputs.KeyPreRope!.Value with { Address = pre.View.Address },
            Query = _layer.Inputs.Query!.Value with { Address = query.View.Address },
            Key = _layer.Inputs.Key with { Address = key.View.Address },
            Value = _layer.Inputs.Value with { Address = value.View.Address },
        };
        using var selection = LayerCompressor.Select(backend, Plan, inputs);
        selection.Status.ThrowIfFailed();
        return backend.Read(selection.KeptIndices.View);

        BackendBuffer<byte> Copy(TensorView host)
        {
            long bytes = (long)host.Tokens * host.Heads * host.Dim * host.ElementType.Size();
            var memory = backend.Allocate<byte>(bytes);
            backend.Upload(new ReadOnlySpan<byte>((void*)host.Address, (int)bytes), memory.View);
            return memory;
        }
    }
}
