using Compactor.Native.Cpu;
using Xunit;

namespace Compactor.Native.Tests.Cpu;

/// <summary>The check that tests of the CPU backend run with.</summary>
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
        foreach (int items in (int[])[1, 5])
        {
            var found = new float[items];
            _workers.Run(items, 4, (item, scratch) =>
            {
                found[item] = *(float*)scratch;
                *(float*)scratch = 1;
            });
            Assert.All(found, value => Assert.True(float.IsNaN(value)));
        }
        using var workspace = _workers.Rent(4);
        Assert.True(float.IsNaN(*(float*)workspace.Address));
    }

    public void Dispose() => _workers.Dispose();
}
