using Compactor.Native.Cpu;
using Compactor.Native.Reference;
using Xunit;

namespace Compactor.Native.Tests.Support;

/// <summary>Every implementation of the operations that this machine can run.</summary>
internal static class Backends
{
    public static IEnumerable<string> Names =>
        ["reference", .. new[] { SimdWidth.Bits128, SimdWidth.Bits256, SimdWidth.Bits512 }.Where(CpuBackend.Supports).Select(w => $"cpu{(int)w}")];

    public static TheoryData<string> All => [.. Names];

    public static KvBackend Create(string name, int threads = 2) =>
        name == "reference" ? new ReferenceBackend() : Cpu(threads, (SimdWidth)int.Parse(name["cpu".Length..]));

    /// <summary>A CPU backend that notices what its stages write behind their scratch, and what they read of it unwritten.</summary>
    public static CpuBackend Cpu(int threads, SimdWidth width = SimdWidth.Auto) => new(threads, width) { ChecksMemory = true };
}
