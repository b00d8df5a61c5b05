namespace Compactor.Native.Io;

/// <summary>How the cache tensors of a <see cref="KvDump"/> are laid out.</summary>
public enum KvLayout
{
    /// <summary><c>[N, H, D]</c>: tokens of all sequences end to end, as FlashAttention's variable-length batches are.</summary>
    PackedTokens,
    /// <summary><c>[B, H, S, D]</c>: as Hugging Face caches and ONNX Runtime's <c>present.*</c> outputs are.</summary>
    BatchHeadSequence,
}
