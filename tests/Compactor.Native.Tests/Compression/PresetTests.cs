using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Native.Tests;

public class PresetTests
{
    [Theory]
    [InlineData("paper")]
    [InlineData("kvpress")]
    [InlineData("compactor-vllm")]
    public void Every_preset_is_valid(string name) => CompressionPresets.ByName[name].Validate();
}
