using System.Runtime.InteropServices;
using System.Text.Unicode;
using Compactor.Native.Cpu;
using Compactor.Native.Gpu;

namespace Compactor.Abi;

internal static unsafe partial class Exports
{
    [UnmanagedCallersOnly(EntryPoint = "compactor_backend_open")]
    public static Status BackendOpen(BackendOptions* options, ulong* backend) => Boundary.Run(() =>
    {
        Arguments.CheckResult("backend", backend);
        var opened = Backend.Open(options is null ? default : Arguments.Read("options", options));
        *backend = Handles.AddOrDispose(HandleKind.Backend, opened, opened);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_backend_describe")]
    public static Status BackendDescribe(ulong backend, BackendInfo* info) => Boundary.Run(() =>
    {
        using var used = Handles.Use<Backend>(backend, HandleKind.Backend);
        Arguments.CheckStruct("info", info);
        var operations = used.Value.Operations;
        var cpu = operations as CpuBackend;
        var described = new BackendInfo
        {
            Kind = cpu is null ? Backend.Cuda : Backend.Cpu,
            Threads = cpu?.Threads ?? 0,
            SimdBits = (int)(cpu?.Width ?? 0),
        };
        // cut at a whole character; the rest of a field stays 0
        Utf8.FromUtf16(operations.Description, new Span<byte>(described.Description, BackendInfo.DescriptionBytes - 1), out _, out _);
        Utf8.FromUtf16((operations as GpuBackend)?.Compiler ?? "", new Span<byte>(described.Compiler, BackendInfo.CompilerBytes - 1), out _, out _);
        Arguments.Fill(info, described);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_backend_synchronize")]
    public static Status BackendSynchronize(ulong backend) => Boundary.Run(() =>
    {
        using var used = Handles.Use<Backend>(backend, HandleKind.Backend);
        using var done = used.Value.Operations.Record();
        done.Wait();
        lock (used.Value.Turn)
            used.Value.Findings.ThrowIfAny();
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_backend_close")]
    public static Status BackendClose(ulong backend) => Boundary.Run(() => Handles.Close<Backend>(backend, HandleKind.Backend, closed => closed.Dispose()));
}
