using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Compactor.Native;

namespace Compactor.Abi;

/// <summary>The functions of compactor.h, which documents them.</summary>
internal static unsafe partial class Exports
{
    public const uint AbiVersion = 1;

    /// <summary>Digits of the commit.</summary>
    private const int CommitDigits = 12;

    private static readonly nint VersionText = Marshal.StringToCoTaskMemUTF8(
        typeof(KvBackend).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion.Split('+') is [var version, { Length: > CommitDigits } commit]
            ? $"{version}+{commit[..CommitDigits]}" : typeof(KvBackend).Assembly.GetName().Version!.ToString(3));

    [UnmanagedCallersOnly(EntryPoint = "compactor_version")]
    public static byte* Version() => (byte*)VersionText;

    [UnmanagedCallersOnly(EntryPoint = "compactor_abi_version")]
    public static uint GetAbiVersion() => AbiVersion;

    [UnmanagedCallersOnly(EntryPoint = "compactor_status_name")]
    public static byte* StatusName(Status status) => Literal(status switch
    {
        Status.Ok => "COMPACTOR_OK"u8,
        Status.InvalidArgument => "COMPACTOR_INVALID_ARGUMENT"u8,
        Status.Unsupported => "COMPACTOR_UNSUPPORTED"u8,
        Status.BudgetNotMet => "COMPACTOR_BUDGET_NOT_MET"u8,
        Status.NonFinite => "COMPACTOR_NON_FINITE"u8,
        Status.InvalidFile => "COMPACTOR_INVALID_FILE"u8,
        Status.FactorizationFailed => "COMPACTOR_FACTORIZATION_FAILED"u8,
        Status.OutOfBlocks => "COMPACTOR_OUT_OF_BLOCKS"u8,
        Status.InvalidHandle => "COMPACTOR_INVALID_HANDLE"u8,
        Status.InUse => "COMPACTOR_IN_USE"u8,
        Status.OutOfMemory => "COMPACTOR_OUT_OF_MEMORY"u8,
        Status.IoError => "COMPACTOR_IO_ERROR"u8,
        Status.Forked => "COMPACTOR_FORKED"u8,
        Status.Internal => "COMPACTOR_INTERNAL"u8,
        Status.NoDevice => "COMPACTOR_NO_DEVICE"u8,
        Status.DeviceFailed => "COMPACTOR_DEVICE_FAILED"u8,
        Status.CompilationFailed => "COMPACTOR_COMPILATION_FAILED"u8,
        _ => "unknown status"u8,
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_last_error")]
    public static byte* LastError()
    {
        byte* message = Boundary.LastError;
        return message is null ? Literal(""u8) : message;
    }

    [UnmanagedCallersOnly(EntryPoint = "compactor_set_log")]
    public static Status SetLog(nint callback, nint userData) => Boundary.Run(() => Boundary.SetLog(callback, userData));

    [UnmanagedCallersOnly(EntryPoint = "compactor_live_handles")]
    public static Status LiveHandles(long* count) => Boundary.Run(() =>
    {
        Arguments.CheckResult("count", count);
        *count = Handles.Live;
    });

    /// <summary>Address of a literal, which never moves and is followed by NUL.</summary>
    private static byte* Literal(ReadOnlySpan<byte> literal) => (byte*)Unsafe.AsPointer(ref MemoryMarshal.GetReference(literal));
}
