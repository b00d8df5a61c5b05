using Compactor.Native;

namespace Compactor.Abi;

/// <summary><c>compactor_status</c>; the first seven are those of <see cref="CompactorStatus"/>.</summary>
internal enum Status
{
    Ok = 0,
    InvalidArgument = CompactorStatus.InvalidArgument,
    Unsupported = CompactorStatus.Unsupported,
    BudgetNotMet = CompactorStatus.BudgetNotMet,
    NonFinite = CompactorStatus.NonFinite,
    InvalidFile = CompactorStatus.InvalidFile,
    FactorizationFailed = CompactorStatus.FactorizationFailed,
    OutOfBlocks = CompactorStatus.OutOfBlocks,
    InvalidHandle = 8,
    InUse = 9,
    OutOfMemory = 10,
    IoError = 11,
    Forked = 12,
    Internal = 13,
    NoDevice = 14,
    DeviceFailed = 15,
    CompilationFailed = 16,
}

internal static class StatusOf
{
    /// <summary>The status of a failure that the library reports; its own numbers from 8 on are others.</summary>
    public static Status Library(CompactorStatus status) => status switch
    {
        CompactorStatus.NoDevice => Status.NoDevice,
        CompactorStatus.DeviceFailed => Status.DeviceFailed,
        CompactorStatus.CompilationFailed => Status.CompilationFailed,
        CompactorStatus.OutOfMemory => Status.OutOfMemory,
        _ => (Status)status,
    };
}

/// <summary>A failure of this interface itself, beside those that the library reports.</summary>
internal sealed class AbiException(Status status, string message) : Exception(message)
{
    public Status Status => status;

    public static AbiException Argument(string message) => new(Status.InvalidArgument, message);
}
