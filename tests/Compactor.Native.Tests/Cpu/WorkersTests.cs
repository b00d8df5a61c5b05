using Compactor.Native.Cpu;
using Xunit;

namespace Compactor.Native.Tests.Cpu;

/// <summary>The check that every other test of the CPU backend runs with.</summary>
public sealed unsafe class WorkersTests : IDisposable
{
    private readonly Workers _workers = new(2) { ChecksMemory = true };

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void What_is_written_behind_scratch_is_an_error(int items)
    {
        _workers.Run(items, 100, (_, scratch) => ((byte*)scratch)[99] = 1);
        var error = Assert.ThrowsAny<Exception>(() => _workers.Run(items, 100, (_, scratch) => ((byte*)scratch)[100] = 1));
        Assert.Contains("behind 100 bytes", error.Message);
    }

    [Fact]
    public void What_is_written_behind_workspace_is_an_error()
    {
        var large = _workers.Rent(1000);
        large.Dispose();
        var small = _workers.Rent(8);
        Assert.Equal(large.Address, small.Address);
        ((byte*)small.Address)[8] = 1;
        Assert.Contains("behind 8 bytes", Assert.Throws<InvalidOperationException>(() => small.Dispose()).Message);
    }

    [Fact]
    public void Every_item_finds_NaN()
    {
        bool found = true;
        _workers.Run(5, 4, (_, scratch) =>
        {
            found &= float.IsNaN(*(float*)scratch);
            *(float*)scratch = 1;
        });
        Assert.True(found);
    }

    public void Dispose() => _workers.Dispose();
}
