using Compactor.Native;
using Compactor.Native.Cuda;
using Xunit;

namespace Compactor.Gpu.Tests;

public class CompileTargetTests
{
    private static readonly int[] s_nvrtc118 = [35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90];
    private static readonly int[] s_nvrtc112 = [35, 50, 52, 60, 61, 70, 75, 80, 86];

    [Theory]
    [InlineData(90, "sm_90")]
    [InlineData(86, "sm_86")]
    [InlineData(88, "sm_87")] // unknown to the compiler: an older one of the same generation
    [InlineData(100, "compute_90")] // a later generation: PTX
    public void Machine_code_is_preferred(int device, string expected) =>
        Assert.Equal(expected, CompileTarget.Choose(device, s_nvrtc118, new Version(11, 8), new Version(12, 8)).Name);

    [Fact]
    public void A_compiler_newer_than_the_driver_makes_machine_code_only()
    {
        Assert.Equal("sm_86", CompileTarget.Choose(89, s_nvrtc112, new Version(12, 4), new Version(11, 2)).Name);
        var exception = Assert.Throws<CompactorException>(() => CompileTarget.Choose(90, s_nvrtc112, new Version(12, 4), new Version(12, 0)));
        Assert.Equal(CompactorStatus.NoDevice, exception.Status);
        Assert.Contains("Update the driver to CUDA 12.4", exception.Message);
        Assert.Contains("9.0", exception.Message);
    }

    [Fact]
    public void A_compiler_that_knows_nothing_new_enough_is_named() =>
        Assert.Contains("NVRTC 10.2 compiles for compute capability up to 7.5", Assert.Throws<CompactorException>(() => CompileTarget.Choose(90, [60, 70, 75], new Version(10, 2), new Version(12, 0))).Message);

    [Theory]
    [InlineData("sm_90a")]
    [InlineData("sm_86")]
    [InlineData("compute_90")]
    [InlineData("compute_90a")]
    public void Names_are_read_back(string name)
    {
        Assert.True(CompileTarget.TryParse(name, out var target));
        Assert.Equal(name, target.Name);
    }

    [Theory]
    [InlineData("sm_")]
    [InlineData("sm_a")]
    [InlineData("sm_90b")]
    [InlineData("ptx_90")]
    [InlineData("sm_90_a")]
    public void Other_names_are_not(string name) => Assert.False(CompileTarget.TryParse(name, out _));

    [Fact]
    public void A_device_before_Ampere_is_refused() =>
        Assert.Contains("compute capability 7.5; the kernels need 8.0", Assert.Throws<CompactorException>(() => CompileTarget.Choose(75, s_nvrtc118, new Version(11, 8), new Version(11, 8))).Message);

    [Fact]
    public void Whatever_a_device_runs_is_looked_for_in_caches() =>
        Assert.Equal(["sm_86", "sm_85", "sm_84", "sm_83", "sm_82", "sm_81", "sm_80", "compute_86", "compute_85", "compute_84", "compute_83", "compute_82", "compute_81", "compute_80"],
            CompileTarget.RunnableOn(86).Select(t => t.Name));
}
