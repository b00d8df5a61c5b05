using System.Runtime.InteropServices;
using System.Text;
using System.Text.RegularExpressions;

namespace Compactor.Native.Cuda;

/// <summary>NVRTC, NVIDIA's run-time compiler: entry points as function pointers, so that several versions may be loaded at once.</summary>
internal sealed unsafe partial class NvrtcApi
{
    private readonly delegate* unmanaged<int, byte*> _errorString;
    private readonly delegate* unmanaged<nint*, byte*, byte*, int, byte**, byte**, int> _createProgram;
    private readonly delegate* unmanaged<nint, int, byte**, int> _compileProgram;
    private readonly delegate* unmanaged<nint*, int> _destroyProgram;
    private readonly delegate* unmanaged<nint, nuint*, int> _logSize, _ptxSize, _cubinSize;
    private readonly delegate* unmanaged<nint, byte*, int> _log, _ptx, _cubin;

    /// <summary>Loads NVRTC, its builtins first.</summary>
    /// <param name="place">Path, or a name for the system's loader.</param>
    /// <exception cref="CompactorException">It does not load, or lacks an entry point.</exception>
    public NvrtcApi(string place)
    {
        Place = place;
        LoadBuiltins(place);
        if (!NativeLibrary.TryLoad(place, out nint library))
            throw new CompactorException(CompactorStatus.NoDevice, $"NVRTC {place} does not load.");
        var exports = new NativeExports(library, place);
        _errorString = (delegate* unmanaged<int, byte*>)exports.Require("nvrtcGetErrorString");
        _createProgram = (delegate* unmanaged<nint*, byte*, byte*, int, byte**, byte**, int>)exports.Require("nvrtcCreateProgram");
        _compileProgram = (delegate* unmanaged<nint, int, byte**, int>)exports.Require("nvrtcCompileProgram");
        _destroyProgram = (delegate* unmanaged<nint*, int>)exports.Require("nvrtcDestroyProgram");
        _logSize = (delegate* unmanaged<nint, nuint*, int>)exports.Require("nvrtcGetProgramLogSize");
        _log = (delegate* unmanaged<nint, byte*, int>)exports.Require("nvrtcGetProgramLog");
        _ptxSize = (delegate* unmanaged<nint, nuint*, int>)exports.Require("nvrtcGetPTXSize");
        _ptx = (delegate* unmanaged<nint, byte*, int>)exports.Require("nvrtcGetPTX");
        _cubinSize = (delegate* unmanaged<nint, nuint*, int>)exports.Require("nvrtcGetCUBINSize");
        _cubin = (delegate* unmanaged<nint, byte*, int>)exports.Require("nvrtcGetCUBIN");
        int major = 0, minor = 0, count = 0;
        Check(((delegate* unmanaged<int*, int*, int>)exports.Require("nvrtcVersion"))(&major, &minor), "nvrtcVersion");
        Version = new Version(major, minor);
        Check(((delegate* unmanaged<int*, int>)exports.Require("nvrtcGetNumSupportedArchs"))(&count), "nvrtcGetNumSupportedArchs");
        var architectures = new int[count];
        fixed (int* p = architectures)
            Check(((delegate* unmanaged<int*, int>)exports.Require("nvrtcGetSupportedArchs"))(p), "nvrtcGetSupportedArchs");
        Architectures = architectures;
    }

    /// <summary>Where it was loaded from.</summary>
    public string Place { get; }

    public Version Version { get; }

    /// <summary>Compute capabilities it compiles for, major · 10 + minor, ascending.</summary>
    public IReadOnlyList<int> Architectures { get; }

    /// <summary>Compiles a source to a cubin, or to PTX for a virtual architecture.</summary>
    /// <param name="name">Name of the source in messages.</param>
    /// <param name="source">The source.</param>
    /// <param name="headers">What it includes, by name.</param>
    /// <param name="options">Options of the compiler.</param>
    /// <param name="target">What for; its option is added.</param>
    /// <param name="log">Receives the compiler's log, empty without remarks.</param>
    /// <exception cref="CompactorException">It does not compile; the message carries the log.</exception>
    public byte[] Compile(string name, string source, IReadOnlyDictionary<string, string> headers, IReadOnlyList<string> options, CompileTarget target, out string log)
    {
        using var texts = new NativeStrings([source, name, .. headers.Values, .. headers.Keys, .. options, $"--gpu-architecture={target.Name}"]);
        nint program = 0;
        byte** strings = texts.Pointers;
        Check(_createProgram(&program, strings[0], strings[1], headers.Count, strings + 2, strings + 2 + headers.Count), $"nvrtcCreateProgram of {name}");
        try
        {
            int status = _compileProgram(program, options.Count + 1, strings + 2 + 2 * headers.Count);
            log = Encoding.UTF8.GetString(Read(program, _logSize, _log, "log")).TrimEnd('\0', '\n');
            if (status != 0)
                throw new CompactorException(CompactorStatus.CompilationFailed,
                    $"NVRTC {Version} ({Place}) cannot compile {name} with {string.Join(' ', options)} for {target.Name}: {Describe(status)}.{Environment.NewLine}{log}");
            return target.IsPtx ? Read(program, _ptxSize, _ptx, "PTX") : Read(program, _cubinSize, _cubin, "cubin");
        }
        finally
        {
            _destroyProgram(&program);
        }
    }

    private byte[] Read(nint program, delegate* unmanaged<nint, nuint*, int> size, delegate* unmanaged<nint, byte*, int> read, string what)
    {
        nuint bytes = 0;
        Check(size(program, &bytes), $"Asking NVRTC for the size of the {what}");
        byte[] content = new byte[bytes];
        fixed (byte* p = content)
            if (bytes > 0)
                Check(read(program, p), $"Reading the {what} from NVRTC");
        return content;
    }

    private void Check(int status, string call)
    {
        if (status != 0)
            throw new CompactorException(CompactorStatus.CompilationFailed, $"{call} failed: {Describe(status)} (NVRTC at {Place}).");
    }

    private string Describe(int status) => $"{Marshal.PtrToStringUTF8((nint)_errorString(status))} ({status})";

    /// <summary>
    /// NVRTC opens its builtins library by name; where it does not lie on the loader's path, having loaded the one beside NVRTC answers that name.
    /// </summary>
    private static void LoadBuiltins(string place)
    {
        // What the loader found by its name has its builtins where the loader looks.
        if (!File.Exists(place))
            return;
        string file = new FileInfo(place).ResolveLinkTarget(returnFinalTarget: true)?.FullName ?? Path.GetFullPath(place);
        string folder = Path.GetDirectoryName(file)!;
        var wanted = VersionInName().Match(Path.GetFileName(file));
        string pattern = OperatingSystem.IsWindows() ? "nvrtc-builtins64_*.dll" : "libnvrtc-builtins.so*";
        string[] found = [.. Directory.EnumerateFiles(folder, pattern).Order(StringComparer.Ordinal)];
        // Beside several, the one of the same release: libnvrtc.so.12.4.127 and libnvrtc-builtins.so.12.4.127.
        string? builtins = found.LastOrDefault(path => wanted.Success && path.EndsWith(wanted.Value, StringComparison.Ordinal)) ?? found.LastOrDefault();
        if (builtins is not null)
            NativeLibrary.TryLoad(builtins, out _);
    }

    [GeneratedRegex(@"\.\d+\.\d+\.\d+$")]
    private static partial Regex VersionInName();
}
