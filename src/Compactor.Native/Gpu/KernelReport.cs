using System.Text.Json;
using Compactor.Native.Cuda;

namespace Compactor.Native.Gpu;

/// <summary>A planned kernel, compiled for an architecture, and what it takes of a multiprocessor.</summary>
/// <param name="Kernel">The kernel and its block.</param>
/// <param name="Architecture">Compute capability.</param>
/// <param name="Resources">Read from the machine code.</param>
internal sealed record KernelReport(PlannedKernel Kernel, int Architecture, KernelResources Resources)
{
    /// <summary>Macros without their prefix.</summary>
    public string Macros => string.Join(' ', Kernel.Variant.Macros.Select(m => $"{m.Name["COMPACTOR_".Length..]}={m.Value}"));

    /// <summary>Shared memory of a block, dynamic and declared.</summary>
    public int SharedBytes => Kernel.SharedBytes + Resources.StaticSharedBytes;

    public int BlocksPerMultiprocessor => Occupancy.BlocksPerMultiprocessor(Occupancy.LimitsOf(Architecture), Resources.Registers, Kernel.Threads, SharedBytes);

    public void WriteJson(Utf8JsonWriter json)
    {
        json.WriteStartObject();
        json.WriteString("kernel", Kernel.Variant.Entry);
        json.WriteString("macros", Macros);
        json.WriteNumber("arch", Architecture);
        json.WriteNumber("registers", Resources.Registers);
        json.WriteNumber("stack_bytes", Resources.StackBytes);
        json.WriteNumber("shared_bytes", SharedBytes);
        json.WriteNumber("threads", Kernel.Threads);
        json.WriteNumber("blocks_per_multiprocessor", BlocksPerMultiprocessor);
        json.WriteEndObject();
    }
}
