using Compactor.Native.Gpu;

namespace Compactor.Gpu.Bench;

/// <summary>A layer's heads.</summary>
internal sealed record BenchModel(string Name, int QueryHeads, int KvHeads, int HeadDim)
{
    /// <summary>The reference layer, Llama 3 8B's, and that of Qwen2.5 14B.</summary>
    public static IReadOnlyList<BenchModel> All { get; } = [new("L8", 32, 8, 128), new("qwen2.5-14b", 40, 8, 128)];
}

/// <summary>What is timed, and what it must move and compute at least.</summary>
/// <param name="Name">Name.</param>
/// <param name="Model">The layer.</param>
/// <param name="Tokens">N.</param>
/// <param name="Bytes">Bytes that must be read and written; 0 where they stay in the cache, so that memory is no floor.</param>
/// <param name="Flops">Floating-point operations of matrix products, where they may be the floor; else 0.</param>
/// <param name="Backend">Whose kernels run.</param>
/// <param name="Variants">The operation on inputs that are no two the same memory, so that none finds its own in the cache.</param>
internal sealed record Operation(string Name, BenchModel Model, int Tokens, double Bytes, double Flops, GpuBackend Backend, IReadOnlyList<Action> Variants);

/// <summary>Ceilings measured in the same run.</summary>
/// <param name="BytesPerMicrosecond">Of a copy, read and written.</param>
/// <param name="FlopsPerMicrosecond">Of a large matrix product; null where none could be run.</param>
internal sealed record Floors(double BytesPerMicrosecond, double? FlopsPerMicrosecond)
{
    /// <summary>Microseconds that an operation takes at least; null where that is not known.</summary>
    public double? Of(Operation operation) =>
        operation.Flops > 0 && FlopsPerMicrosecond is null || operation.Bytes + operation.Flops == 0 ? null
        : Math.Max(operation.Bytes / BytesPerMicrosecond, operation.Flops > 0 ? operation.Flops / FlopsPerMicrosecond!.Value : 0);
}

/// <summary>What was measured of an operation.</summary>
/// <param name="Operation">The operation.</param>
/// <param name="Microseconds">Device time of one, each repeat.</param>
/// <param name="HostMicroseconds">Host time to queue one, each repeat.</param>
/// <param name="ReplayMicroseconds">Host time to queue a graph of one on every variant, each repeat.</param>
internal sealed record Measurement(Operation Operation, IReadOnlyList<double> Microseconds, IReadOnlyList<double> HostMicroseconds, IReadOnlyList<double> ReplayMicroseconds)
{
    public double Median => MedianOf(Microseconds);

    public static double MedianOf(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return (sorted[(sorted.Length - 1) / 2] + sorted[sorted.Length / 2]) / 2;
    }
}
