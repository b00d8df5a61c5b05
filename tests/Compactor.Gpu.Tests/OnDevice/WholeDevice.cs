using Xunit;

namespace Compactor.Gpu.Tests.OnDevice;

/// <summary>Tests that want a device's memory for themselves, and so run alone.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class WholeDevice
{
    public const string Name = "Whole device";
}
