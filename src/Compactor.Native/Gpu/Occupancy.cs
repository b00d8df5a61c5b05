namespace Compactor.Native.Gpu;

/// <summary>How many blocks of a kernel share a multiprocessor, from the limits of each architecture (CUDA C++ Programming Guide, compute capabilities).</summary>
internal static class Occupancy
{
    private const int Registers = 65536, RegistersOfAllocation = 256, SharedReserved = 1024, SharedOfAllocation = 128, WarpThreads = 32;

    /// <summary>Limits of an architecture; its devices differ in multiprocessors, which are 0 here.</summary>
    /// <exception cref="CompactorException">The architecture is not known.</exception>
    public static GpuLimits LimitsOf(int architecture) => architecture switch
    {
        80 or 87 => new(architecture, 0, 163 << 10, 164 << 10),
        86 or 89 or 120 or 121 => new(architecture, 0, 99 << 10, 100 << 10),
        90 or 100 or 101 or 103 or 110 => new(architecture, 0, 227 << 10, 228 << 10),
        _ => throw CompactorException.Argument($"Compute capability {architecture} is not known; use 80, 86, 87, 89, 90, 100, 103, 110, 120 or 121."),
    };

    /// <summary>Blocks that fit on a multiprocessor at once.</summary>
    /// <param name="limits">Of the device.</param>
    /// <param name="registers">Of a thread.</param>
    /// <param name="threads">Of a block.</param>
    /// <param name="sharedBytes">Of a block.</param>
    public static int BlocksPerMultiprocessor(in GpuLimits limits, int registers, int threads, int sharedBytes)
    {
        var (mostWarps, mostBlocks) = limits.Architecture switch { 86 => (48, 16), 89 or 120 or 121 => (48, 24), _ => (64, 32) };
        int warps = RoundUp(threads, WarpThreads) / WarpThreads, warpRegisters = RoundUp(Math.Max(1, registers) * WarpThreads, RegistersOfAllocation);
        // Each of a multiprocessor's four parts has a quarter of the registers.
        int warpsByRegisters = Registers / 4 / warpRegisters * 4;
        int shared = RoundUp(sharedBytes + SharedReserved, SharedOfAllocation);
        return Math.Min(Math.Min(mostBlocks, mostWarps / warps), Math.Min(warpsByRegisters / warps, limits.SharedBytesPerMultiprocessor / shared));
    }

    private static int RoundUp(int value, int step) => (value + step - 1) / step * step;
}
