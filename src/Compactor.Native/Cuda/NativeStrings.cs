using System.Runtime.InteropServices;

namespace Compactor.Native.Cuda;

/// <summary>Strings as a native array of zero-terminated UTF-8.</summary>
internal sealed unsafe class NativeStrings : IDisposable
{
    private readonly int _count;

    public NativeStrings(IReadOnlyList<string> values)
    {
        _count = values.Count;
        Pointers = (byte**)NativeMemory.AllocZeroed((nuint)Math.Max(1, _count), (nuint)sizeof(byte*));
        for (int i = 0; i < _count; i++)
            Pointers[i] = (byte*)Marshal.StringToCoTaskMemUTF8(values[i]);
    }

    public byte** Pointers { get; private set; }

    public void Dispose()
    {
        for (int i = 0; i < _count && Pointers != null; i++)
            Marshal.FreeCoTaskMem((nint)Pointers[i]);
        NativeMemory.Free(Pointers);
        Pointers = null;
    }
}
