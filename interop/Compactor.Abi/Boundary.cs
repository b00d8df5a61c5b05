using System.Runtime.InteropServices;
using System.Text;
using Compactor.Native;

namespace Compactor.Abi;

/// <summary>What every call goes through: no exception leaves, and why a call failed is kept for its thread.</summary>
internal static unsafe partial class Boundary
{
    private static readonly int Process = GetProcessId();

    [ThreadStatic]
    private static NativeText? t_lastError;

    private sealed record LogTarget(nint Callback, nint UserData);

    private const int WarningLevel = 1;   // COMPACTOR_LOG_WARNING

    private static volatile LogTarget? s_log;

    public static Status Run(Action body)
    {
        try
        {
            if (GetProcessId() != Process)
                throw new AbiException(Status.Forked, "This process was forked after the library was first used; its threads are not here. Call exec, or load the library in the child only.");
            body();
            return Status.Ok;
        }
        catch (Exception e)
        {
            return Report(e);
        }
    }

    /// <summary>Address of this thread's last message; null before the first.</summary>
    public static byte* LastError => t_lastError is { } text ? text.Address : null;

    public static void SetLog(nint callback, nint userData) => s_log = callback == 0 ? null : new LogTarget(callback, userData);

    /// <summary>Passes a warning to the host's callback, if there is one.</summary>
    /// <param name="message">One line.</param>
    public static void Warn(string message)
    {
        if (s_log is not { } log)
            return;
        using var text = new NativeText(message);
        ((delegate* unmanaged<nint, int, byte*, void>)log.Callback)(log.UserData, WarningLevel, text.Address);
    }

    private static Status Report(Exception exception)
    {
        while (exception is AggregateException { InnerExceptions: [var first, ..] })
            exception = first;
        var (status, message) = exception switch
        {
            AbiException e => (e.Status, e.Message),
            CompactorException e => (StatusOf.Library(e.Status), FieldNames.In(e.Message)),
            OutOfMemoryException => (Status.OutOfMemory, "Memory could not be had; give smaller sizes, or free caches."),
            IOException or UnauthorizedAccessException => (Status.IoError, exception.Message),
            _ => (Status.Internal, $"A defect of the library, please report it: {exception}"),
        };
        try
        {
            t_lastError = new NativeText(message);
        }
        catch (OutOfMemoryException)
        {
            // the status still says it
        }
        return status;
    }

    [LibraryImport("libc", EntryPoint = "getpid"), SuppressGCTransition]
    private static partial int GetProcessId();

    /// <summary>UTF-8 text that ends with NUL in native memory; that of a thread goes some time after the thread.</summary>
    private sealed class NativeText : IDisposable
    {
        private byte* _address;

        public NativeText(string text)
        {
            int bytes = Encoding.UTF8.GetByteCount(text);
            _address = (byte*)NativeMemory.Alloc((nuint)bytes + 1);
            Encoding.UTF8.GetBytes(text, new Span<byte>(_address, bytes));
            _address[bytes] = 0;
        }

        ~NativeText() => Free();

        public byte* Address => _address;

        public void Dispose()
        {
            Free();
            GC.SuppressFinalize(this);
        }

        private void Free()
        {
            NativeMemory.Free(_address);
            _address = null;
        }
    }
}
