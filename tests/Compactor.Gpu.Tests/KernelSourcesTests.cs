using System.Text.RegularExpressions;
using Compactor.Native.Gpu;
using Xunit;

namespace Compactor.Gpu.Tests;

public partial class KernelSourcesTests
{
    [Fact]
    public void Sources_include_nothing_but_each_other()
    {
        Assert.Contains("ptx.cuh", KernelSources.Headers.Keys);
        foreach (var (name, text) in KernelSources.Sources.Concat(KernelSources.Headers))
            foreach (Match include in Include().Matches(text))
                Assert.True(KernelSources.Headers.ContainsKey(include.Groups[1].Value) || include.Groups[1].Value is "simt_ptx.hpp" or "simt_ptx_sm90a.hpp", $"{name} includes {include.Groups[1].Value}");
    }

    [Fact]
    public void Inline_assembly_is_in_the_headers_of_instructions()
    {
        foreach (var (name, text) in KernelSources.Sources.Concat(KernelSources.Headers))
            Assert.Equal(name is "ptx.cuh" or "ptx_sm90a.cuh", Assembly().IsMatch(text));
    }

    [Fact]
    public void Variants_are_equal_when_what_is_compiled_is()
    {
        var a = new KernelVariant("x.cu", "f", ("B", 1), ("A", 2));
        Assert.Equal("x.cu COMPACTOR_A=2 COMPACTOR_B=1", a.Module);
        Assert.Equal(a, new KernelVariant("x.cu", "f", ("A", 2), ("B", 1)));
        Assert.NotEqual(a, new KernelVariant("x.cu", "g", ("A", 2), ("B", 1)));
        Assert.NotEqual(a, new KernelVariant("x.cu", "f", ("A", 3), ("B", 1)));
    }

    [GeneratedRegex("""^#include\s*["<]([^">]*)[">]""", RegexOptions.Multiline)]
    private static partial Regex Include();

    [GeneratedRegex(@"\basm\b")]
    private static partial Regex Assembly();
}
