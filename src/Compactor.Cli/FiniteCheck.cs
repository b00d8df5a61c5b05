using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>Refuses caches with NaN or infinity before anything is computed, also where no score would read them.</summary>
internal static unsafe class FiniteCheck
{
    private static readonly string[] s_roles = ["key", "value", "key_pre_rope", "query", "probe_query"];

    /// <exception cref="CompactorException">An element is not finite; the message names layer, tensor, token and head.</exception>
    public static void Require(KvDump dump, KvDumpLayer layer)
    {
        foreach (string role in s_roles)
            if (layer.Tensors.TryGetValue(role, out var tensor))
                for (long row = 0, dim = tensor.Shape[^1]; dim > 0 && row < tensor.Elements / dim; row++)
                    if (!IsFinite(tensor, row * dim, (int)dim))
                        throw new CompactorException(CompactorStatus.NonFinite, Describe(dump, layer, role, tensor, row));
    }

    private static bool IsFinite(SafetensorsTensor tensor, long first, int count)
    {
        var bytes = new ReadOnlySpan<byte>((byte*)tensor.Address + first * tensor.Type.Size(), count * tensor.Type.Size());
        // An element is not finite exactly when all bits of its exponent are set.
        return tensor.Type switch
        {
            SafetensorsType.F32 => !AnyHasAll(MemoryMarshal.Cast<byte, uint>(bytes), 0x7F800000u),
            SafetensorsType.F16 => !AnyHasAll(MemoryMarshal.Cast<byte, ushort>(bytes), (ushort)0x7C00),
            _ => !AnyHasAll(MemoryMarshal.Cast<byte, ushort>(bytes), (ushort)0x7F80),
        };
    }

    private static bool AnyHasAll(ReadOnlySpan<uint> elements, uint mask)
    {
        bool any = false;
        foreach (uint x in elements)
            any |= (x & mask) == mask;
        return any;
    }

    private static bool AnyHasAll(ReadOnlySpan<ushort> elements, ushort mask)
    {
        bool any = false;
        foreach (ushort x in elements)
            any |= (x & mask) == mask;
        return any;
    }

    private static string Describe(KvDump dump, KvDumpLayer layer, string role, SafetensorsTensor tensor, long row)
    {
        long token, head, sequence;
        if (dump.Layout == KvLayout.PackedTokens)
        {
            (token, head) = (row / tensor.Shape[1], row % tensor.Shape[1]);
            sequence = 0;
            while (role != "probe_query" && dump.CuSeqlens[(int)sequence + 1] <= token)
                sequence++;
            token -= role == "probe_query" ? 0 : dump.CuSeqlens[(int)sequence];
        }
        else
            (token, head, sequence) = (row % tensor.Shape[2], row / tensor.Shape[2] % tensor.Shape[1], row / tensor.Shape[2] / tensor.Shape[1]);
        return $"Layer {layer.Index}: {role} holds NaN or infinity at token {token} of sequence {sequence}, head {head}. " +
            "Scores of such a cache mean nothing; check what wrote it.";
    }
}
