using System.Collections.Concurrent;
using System.Text;
using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>An entry point of a loaded module.</summary>
internal sealed unsafe class CudaKernel : GpuKernel
{
    private const int NumRegs = 4, MaxDynamicSharedBytes = 8, DefaultDynamicSharedBytes = 48 * 1024;

    private readonly CudaContext _context;
    private readonly ConcurrentDictionary<(int Threads, int SharedBytes), int> _resident = [];

    /// <exception cref="CompactorException">The module has no such entry.</exception>
    public CudaKernel(CudaContext context, ModuleHandle module, KernelVariant variant) : base(variant)
    {
        _context = context;
        nint function = 0;
        using (context.Enter())
        {
            fixed (byte* entry = Encoding.UTF8.GetBytes(variant.Entry + '\0'))
                context.Driver.Check(context.Driver.ModuleGetFunction(&function, module.Value, entry), $"cuModuleGetFunction of {variant}");
            Function = function;
            Registers = Attribute(NumRegs);
            // More than 48 KiB of dynamic shared memory has to be asked for, once; a launch still states what it uses.
            int most = Math.Max(DefaultDynamicSharedBytes, context.Limits.SharedBytesPerBlock);
            context.Driver.Check(context.Driver.FuncSetAttribute(function, MaxDynamicSharedBytes, most), $"cuFuncSetAttribute of {variant}: {most} bytes of dynamic shared memory");
        }
    }

    public nint Function { get; }

    public override int Registers { get; }

    public override int BlocksPerMultiprocessor(int threads, int sharedBytes) => _resident.GetOrAdd((threads, sharedBytes), key =>
    {
        int blocks = 0;
        using (_context.Enter())
            _context.Driver.Check(_context.Driver.OccupancyMaxActiveBlocksPerMultiprocessor(&blocks, Function, key.Threads, (nuint)key.SharedBytes),
                $"cuOccupancyMaxActiveBlocksPerMultiprocessor of {Variant}, {key.Threads} threads, {key.SharedBytes} bytes of shared memory");
        return blocks;
    });

    private int Attribute(int attribute)
    {
        int value = 0;
        _context.Driver.Check(_context.Driver.FuncGetAttribute(&value, attribute, Function), $"cuFuncGetAttribute of {Variant}");
        return value;
    }
}
