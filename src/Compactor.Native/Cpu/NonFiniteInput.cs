using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>Remembers the first non-finite input that work items met, whatever their order, and names it.</summary>
internal sealed class NonFiniteInput(LayerShape shape, string tensor)
{
    private readonly Lock _lock = new();
    private (int Sequence, int Token, int Head, float Value)? _first;

    /// <summary>Looks for a non-finite element in rows known to hold one.</summary>
    public unsafe void Find(int sequence, int token, int count, int head, float* rows, int dim)
    {
        for (int i = 0; i < count; i++)
            foreach (float x in new ReadOnlySpan<float>(rows + (nint)i * dim, dim))
                if (!float.IsFinite(x))
                {
                    var found = (sequence, token + i, head, x);
                    lock (_lock)
                        if (_first is not { } first || (found.sequence, found.Item2, found.head).CompareTo((first.Sequence, first.Token, first.Head)) < 0)
                            _first = found;
                    return;
                }
    }

    /// <summary>Throws if anything was found.</summary>
    public void ThrowIfAny()
    {
        if (_first is { } first)
            throw new CompactorException(CompactorStatus.NonFinite,
                $"Layer {shape.Layer}: {tensor} holds {first.Value} at token {first.Token} of sequence {first.Sequence}, head {first.Head}. " +
                "Scores of a cache with NaN or infinity mean nothing; check what wrote it.");
    }
}
