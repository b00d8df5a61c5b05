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
        name == "reference" ? new ReferenceBackend() : new CpuBackend(threads, (SimdWidth)int.Parse(name["cpu".Length..])) { ChecksMemory = true };
}
