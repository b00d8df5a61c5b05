namespace Compactor.Native;

/// <summary>
/// A strided view of a packed batch, <c>[token, head, dim]</c>, in memory the backend can reach (host memory for the CPU
/// backend, device memory for a GPU). It owns nothing: the caller keeps the memory alive and in place while it is used.
/// The last dimension is dense; strides are in elements.
/// </summary>
/// <param name="Address">Address of token 0 of sequence 0, head 0.</param>
/// <param name="ElementType">Type of one element.</param>
/// <param name="Tokens">Tokens of all sequences together.</param>
/// <param name="Heads">Heads.</param>
/// <param name="Dim">Head dimension D.</param>
/// <param name="TokenStride">Elements from one token to the next.</param>
/// <param name="HeadStride">Elements from one head to the next.</param>
/// <param name="SequenceStride">
/// Elements from the first token of one sequence to the first token of the next, for padded batches such as
/// <c>[B, H, S, D]</c>; 0 when sequences follow each other as tokens (packed).
/// </param>
public readonly record struct TensorView(
    nint Address, ElementType ElementType, int Tokens, int Heads, int Dim, long TokenStride, long HeadStride, long SequenceStride = 0)
{
    /// <summary>A dense packed tensor <c>[tokens, heads, dim]</c>, as FlashAttention's variable-length batches are.</summary>
    public static TensorView Packed(nint address, ElementType type, int tokens, int heads, int dim) =>
        new(address, type, tokens, heads, dim, (long)heads * dim, dim);

    /// <summary>
    /// A dense tensor <c>[batch, heads, tokensPerSequence, dim]</c>, as Hugging Face caches and ONNX Runtime's
    /// <c>present.*</c> outputs are.
    /// </summary>
    public static TensorView BatchHeadSequence(nint address, ElementType type, int batch, int heads, int tokensPerSequence, int dim) =>
        new(address, type, checked(batch * tokensPerSequence), heads, dim, dim, (long)tokensPerSequence * dim,
            (long)heads * tokensPerSequence * dim);

    /// <summary>Address of element 0 of a row.</summary>
    /// <param name="sequence">Index of the sequence.</param>
    /// <param name="sequenceStart">Packed index of the sequence's first token (<c>cu_seqlens[sequence]</c>).</param>
    /// <param name="token">Token within the sequence.</param>
    /// <param name="head">Head.</param>
    internal nint Row(int sequence, int sequenceStart, int token, int head)
    {
        long origin = SequenceStride == 0 ? sequenceStart * TokenStride : sequence * SequenceStride;
        return Address + (nint)((origin + token * TokenStride + head * HeadStride) * ElementType.Size());
    }
}

/// <summary>A run of elements in memory the backend can reach; it owns nothing.</summary>
/// <typeparam name="T">Element type.</typeparam>
/// <param name="Address">Address of the first element.</param>
/// <param name="Length">Number of elements.</param>
public readonly record struct BufferView<T>(nint Address, long Length) where T : unmanaged
{
    /// <summary>A part of the run.</summary>
    /// <exception cref="CompactorException">The part reaches beyond it.</exception>
    public BufferView<T> Slice(long start, long length) => start >= 0 && length >= 0 && start + length <= Length
        ? new(Address + (nint)(start * System.Runtime.CompilerServices.Unsafe.SizeOf<T>()), length)
        : throw CompactorException.Argument($"Elements {start} to {start + length} are not in a buffer of {Length}.");

    /// <summary>The elements as a span. Valid for host memory only.</summary>
    public unsafe Span<T> AsSpan() => new((void*)Address, checked((int)Length));
}
