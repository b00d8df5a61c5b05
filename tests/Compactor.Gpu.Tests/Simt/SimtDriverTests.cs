using Compactor.Native;
using Compactor.Native.Gpu;
using Xunit;

namespace Compactor.Gpu.Tests.Simt;

public unsafe class SimtDriverTests
{
    private static readonly KernelVariant s_deal = RowMoves.Deal(64, ElementType.BFloat16);

    [Fact]
    public void A_kernel_that_reads_what_is_not_there_is_named_by_whoever_waits()
    {
        using var driver = new SimtDriver();
        using var stream = driver.CreateStream();
        driver.Launch(driver.Load(s_deal), RowMoves.OverSequences(1), new DealBlocksParams { Sequences = 1, BlockSize = 16 }, stream);
        var failure = Assert.Throws<CompactorException>(stream.Synchronize);
        Assert.Equal(CompactorStatus.DeviceFailed, failure.Status);
        Assert.Matches(@"kernel deal_blocks \(compact\.cu .*\), block \(0, 0, 0\), thread \(\d+, 0, 0\): (global read of \d+ bytes at 0x[0-9a-f]+ is outside every allocation) at \w+\.cuh?:\d+", failure.Message);
        Assert.Throws<CompactorException>(() => driver.Record(stream).Wait());
    }

    [Fact]
    public void A_parameter_struct_of_another_size_is_refused()
    {
        using var driver = new SimtDriver();
        using var stream = driver.CreateStream();
        Assert.Contains("bytes of parameters", Assert.Throws<InvalidOperationException>(() => driver.Launch(driver.Load(s_deal), RowMoves.OverSequences(1), 1L, stream)).Message);
    }

    [Fact]
    public void Queued_copies_happen_before_the_event_passes_and_not_all_at_once()
    {
        int early = 0;
        const int Seeds = 20;
        for (ulong seed = 1; seed <= Seeds; seed++)
        {
            using var driver = new SimtDriver(seed);
            using var stream = driver.CreateStream();
            nint host = driver.AllocateHost(16), device = driver.Allocate(16, stream);
            driver.Fill(device, 7, 16, stream);
            driver.CopyToHost(device, host, 16, stream);
            using var copied = driver.Record(stream);
            early += *(byte*)host == 7 ? 1 : 0;
            copied.Wait();
            Assert.True(copied.HasPassed);
            Assert.Equal(7, *(byte*)host);
            driver.Free(device, stream);
            driver.FreeHost(host);
        }
        Assert.InRange(early, 1, Seeds - 1);
    }

    [Fact]
    public void A_stream_waits_for_another()
    {
        for (ulong seed = 1; seed <= 20; seed++)
        {
            using var driver = new SimtDriver(seed);
            using GpuStream first = driver.CreateStream(), second = driver.CreateStream();
            nint host = driver.AllocateHost(1), device = driver.Allocate(1, first);
            driver.Fill(device, 3, 1, first);
            driver.Wait(second, driver.Record(first));
            driver.CopyToHost(device, host, 1, second);
            second.Synchronize();
            Assert.Equal(3, *(byte*)host);
            driver.Free(device, second);
        }
    }

    [Fact]
    public void Memory_is_freed_once_and_copies_stay_inside_it()
    {
        using var driver = new SimtDriver();
        using var stream = driver.CreateStream();
        nint device = driver.Allocate(100, stream), host = driver.AllocateHost(101);
        driver.CopyToDevice(host, device, 101, stream);
        Assert.Contains("not inside one device allocation", Assert.Throws<CompactorException>(stream.Synchronize).Message);
        driver.Free(device, stream);
        Assert.Contains("freed before", Assert.Throws<InvalidOperationException>(() => driver.Free(device, stream)).Message);
    }

    [Fact]
    public void A_variant_that_does_not_compile_carries_the_compilers_message()
    {
        using var driver = new SimtDriver();
        var failure = Assert.Throws<CompactorException>(() => driver.Load(new KernelVariant("compact.cu", "deal_blocks")));
        Assert.Equal(CompactorStatus.CompilationFailed, failure.Status);
        Assert.Contains("COMPACTOR_HEAD_DIM", failure.Message);
    }
}
