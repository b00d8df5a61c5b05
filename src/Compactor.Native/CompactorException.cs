namespace Compactor.Native;

/// <summary>What kind of failure a <see cref="CompactorException"/> reports.</summary>
public enum CompactorStatus
{
    /// <summary>An option, shape, stride or size the caller passed is wrong.</summary>
    InvalidArgument = 1,
    /// <summary>A valid request that this library or backend does not serve, refused by name.</summary>
    Unsupported = 2,
    /// <summary>A budget that the input cannot meet.</summary>
    BudgetNotMet = 3,
    /// <summary>Keys, queries or scores hold NaN or infinity.</summary>
    NonFinite = 4,
    /// <summary>A file that is truncated, malformed or holds unexpected tensors.</summary>
    InvalidFile = 5,
    /// <summary>The Gram matrix could not be factorised after every escalation of epsilon.</summary>
    FactorizationFailed = 6,
    /// <summary>A paged cache has too few free blocks; nothing was changed.</summary>
    OutOfBlocks = 7,
    /// <summary>There is no GPU, driver or compiler this can run on; the message says what was looked for.</summary>
    NoDevice = 8,
    /// <summary>The GPU driver refused a call or reports that work failed; the message carries its name and text of the error.</summary>
    DeviceFailed = 9,
    /// <summary>A kernel does not compile; the message carries the compiler's log.</summary>
    CompilationFailed = 10,
    /// <summary>The device, or page-locked memory, has too little left; nothing was changed.</summary>
    OutOfMemory = 11,
}

/// <summary>
/// The one exception the library throws for conditions a caller can act on. The message names the offending
/// value and says what to do.
/// </summary>
public sealed class CompactorException : Exception
{
    /// <summary>Creates an exception.</summary>
    public CompactorException(CompactorStatus status, string message, Exception? innerException = null)
        : base(message, innerException) => Status = status;

    /// <summary>The kind of failure.</summary>
    public CompactorStatus Status { get; }

    internal static CompactorException Argument(string message) => new(CompactorStatus.InvalidArgument, message);

    internal static CompactorException Unsupported(string message) => new(CompactorStatus.Unsupported, message);
}
