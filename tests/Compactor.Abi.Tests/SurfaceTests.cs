using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using Compactor.Native;
using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The header, the managed declarations and the shared library say the same.</summary>
public partial class SurfaceTests
{
    private static readonly Type[] ManagedStructs =
        [.. typeof(Exports).Assembly.GetTypes().Where(type => type.Namespace == "Compactor.Abi" && type.IsValueType && type.GetField("StructSize") is not null)];

    private static readonly (string Name, MethodInfo Method)[] ManagedExports =
        [.. from method in typeof(Exports).GetMethods(BindingFlags.Static | BindingFlags.Public)
            let export = method.GetCustomAttribute<UnmanagedCallersOnlyAttribute>()
            where export is not null
            select (export.EntryPoint!, method)];

    private static string CName(Type type) => "compactor_" + Snake(type.Name);

    private static string Snake(string name) => Capital().Replace(name, m => (m.Index == 0 ? "" : "_") + m.Value.ToLowerInvariant());

    [Fact]
    public void Struct_sizes_and_offsets_agree()
    {
        Assert.Equal(Header.Structs.Keys.Order(), ManagedStructs.Select(CName).Order());
        var check = new StringWriter();
        check.WriteLine("#include <compactor.h>\n#include <stddef.h>");
        foreach (var type in ManagedStructs)
        {
            var fields = type.GetFields(BindingFlags.Instance | BindingFlags.Public);
            Assert.Equal(Header.Structs[CName(type)], fields.Select(field => Snake(field.Name)));
            check.WriteLine($"_Static_assert(sizeof({CName(type)}) == {Marshal.SizeOf(type)}, \"size of {CName(type)}\");");
            foreach (var field in fields)
                check.WriteLine($"_Static_assert(offsetof({CName(type)}, {Snake(field.Name)}) == {Marshal.OffsetOf(type, field.Name)}, \"{CName(type)}.{Snake(field.Name)}\");");
        }
        string source = Path.Combine(NativeBuild.Folder, "layout.c");
        File.WriteAllText(source, check.ToString());
        Command.Run("cc", ["-std=c11", "-Werror", "-fsyntax-only", "-I", Path.GetDirectoryName(NativeBuild.Header)!, source]);
        // and the check can fail
        File.WriteAllText(source, check.ToString().Replace("compactor_tensor, heads) == ", "compactor_tensor, heads) == 1", StringComparison.Ordinal));
        Assert.Contains("compactor_tensor.heads", Command.Run("cc", ["-std=c11", "-fsyntax-only", "-I", Path.GetDirectoryName(NativeBuild.Header)!, source], exitCode: 1));
    }

    [Fact]
    public void Example_of_the_readme_compiles()
    {
        var examples = CExample().Matches(File.ReadAllText(Path.Combine(NativeBuild.Root, "interop", "README.md")));
        string source = Path.Combine(NativeBuild.Folder, "readme.c");
        File.WriteAllText(source, Assert.Single(examples).Groups[1].Value);
        Command.Run("cc", ["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", Path.GetDirectoryName(NativeBuild.Header)!, source]);
    }

    [Fact]
    public void Functions_have_the_parameters_of_the_header()
    {
        Assert.Equal(Header.Functions.Keys.Order(), ManagedExports.Select(export => export.Name).Order());
        foreach (var (name, method) in ManagedExports)
        {
            var (result, parameters) = Header.Functions[name];
            Assert.Equal($"{name} -> {CType(method.ReturnType)}", $"{name} -> {result}");
            Assert.Equal(parameters.Select(Plain), method.GetParameters().Select(parameter => CType(parameter.ParameterType)));
        }

        static string CType(Type type) => type.IsPointer ? (CType(type.GetElementType()!) + "*").Replace("compactor_handle", "uint64_t", StringComparison.Ordinal)
            : type == typeof(int) ? "int32_t" : type == typeof(uint) ? "uint32_t" : type == typeof(long) ? "int64_t" : type == typeof(ulong) ? "uint64_t"
            : type == typeof(float) ? "float" : type == typeof(double) ? "double" : type == typeof(byte) ? "char" : type == typeof(void) ? "void"
            : type == typeof(nint) ? "void*" : type == typeof(Status) ? "compactor_status" : CName(type);

        // handles are 64-bit integers, a callback is an address
        static string Plain(string type) => Regex.Replace(type, "^compactor_(backend|plan|cache|sequence|compaction|tables)(?![a-z_])", "uint64_t").Replace("compactor_log_callback", "void*", StringComparison.Ordinal);
    }

    [Fact]
    public void Constants_have_the_values_of_the_library()
    {
        var expected = Enum.GetValues<Status>().ToDictionary(status => "COMPACTOR_" + Snake(status.ToString()).ToUpperInvariant(), status => (int)status);
        void Add(string prefix, params (string Name, object Value)[] constants)
        {
            foreach (var (name, value) in constants)
                expected.Add($"COMPACTOR_{prefix}{name}", Convert.ToInt32(value));
        }
        Add("BACKEND_", ("AUTO", Backend.Auto), ("CUDA", Backend.Cuda), ("CPU", Backend.Cpu));
        Add("", ("FLOAT32", ElementType.Float32), ("FLOAT16", ElementType.Float16), ("BFLOAT16", ElementType.BFloat16), ("OPAQUE8", ElementType.Opaque8));
        Add("PRESET_", ("PAPER", 0), ("KVPRESS", 1), ("COMPACTOR_VLLM", 2));
        Add("SKETCH_", ("SHARED", SketchSharing.Shared), ("PER_LAYER", SketchSharing.PerLayer), ("PER_SEQUENCE_HEAD", SketchSharing.PerSequenceHead));
        Add("NORMALIZE_", ("HEAD", NormalizationScope.Head), ("SEQUENCE", NormalizationScope.Sequence), ("CHUNK", NormalizationScope.Chunk));
        Add("GROUP_", ("SUM", GroupReduction.Sum), ("MEAN", GroupReduction.Mean));
        Add("PROTECTED_", ("ON_TOP", ProtectedBudget.OnTop), ("INSIDE", ProtectedBudget.Inside));
        Add("SELECT_", ("SEQUENCE", SelectionScope.Sequence), ("HEAD", SelectionScope.Head), ("TOKEN", SelectionScope.Token));
        Add("COUNT_", ("CEILING", RetentionCount.CeilingOfTokens), ("FLOOR", RetentionCount.FloorOfTokens), ("ROUND_UNPROTECTED", RetentionCount.RoundOfUnprotected));
        Add("WEIGHT_", ("FIXED", 0), ("ONE_MINUS_RETENTION", 1));
        Add("BUDGET_", ("RETENTION", 0), ("TOKENS", 1), ("BYTES", 2));
        Add("POLICY_", ("COMPACTOR", 0), ("LEVERAGE", 1), ("ATTENTION", 2), ("RANDOM", 3), ("RECENT", 4));
        Add("ROTARY_", ("HALF", RotaryStyle.HalfRotation), ("INTERLEAVED", RotaryStyle.Interleaved));
        Add("LOG_", ("INFO", 0), ("WARNING", 1));
        Assert.Equal(expected.OrderBy(c => c.Key, StringComparer.Ordinal), Header.Constants.OrderBy(c => c.Key, StringComparer.Ordinal));
        Assert.Equal($"{Exports.AbiVersion}", Header.Macro("COMPACTOR_ABI_VERSION"));
        Assert.Equal(typeof(KvBackend).Assembly.GetName().Version!.ToString(3),
            $"{Header.Macro("COMPACTOR_VERSION_MAJOR")}.{Header.Macro("COMPACTOR_VERSION_MINOR")}.{Header.Macro("COMPACTOR_VERSION_PATCH")}");
    }

    [Fact]
    public void Exported_symbols_are_those_committed()
    {
        // the one absolute symbol is the name of the symbol version
        var exported = from line in Command.Run("nm", ["-D", "--defined-only", NativeBuild.Library]).Split('\n', StringSplitOptions.RemoveEmptyEntries)
                       let parts = line.Split(' ')
                       where parts[1] != "A"
                       select parts[2].Split('@')[0];
        var committed = File.ReadAllLines(Path.Combine(NativeBuild.Root, "interop", "exports.txt"));
        Assert.Equal(committed, exported.Order(StringComparer.Ordinal));
        Assert.Equal(committed, Header.Functions.Keys.Order(StringComparer.Ordinal));
    }

    [Fact]
    public void Library_is_small_stripped_and_needs_no_glibc_above_2_34()
    {
        Assert.InRange(new FileInfo(NativeBuild.Library).Length, 1, 8 << 20);
        Assert.Contains("no symbols", Command.Run("nm", [NativeBuild.Library]));
        var versions = GlibcVersion().Matches(Command.Run("objdump", ["-T", NativeBuild.Library])).Select(m => Version.Parse(m.Groups[1].Value)).ToArray();
        Assert.NotEmpty(versions);
        Assert.InRange(versions.Max()!, new Version(2, 2), new Version(2, 34));
        string dynamic = Command.Run("objdump", ["-p", NativeBuild.Library]);
        Assert.Contains("SONAME               libcompactor_native.so", dynamic);
        foreach (Match needed in Needed().Matches(dynamic))
            Assert.Contains(needed.Groups[1].Value, (string[])["libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2", "libdl.so.2", "libpthread.so.0", "librt.so.1"]);
    }

    [GeneratedRegex("```c\\n(.*?)```", RegexOptions.Singleline)]
    private static partial Regex CExample();

    [GeneratedRegex("[A-Z]")]
    private static partial Regex Capital();

    [GeneratedRegex(@"GLIBC_(\d+\.\d+)")]
    private static partial Regex GlibcVersion();

    [GeneratedRegex(@"NEEDED\s+(\S+)")]
    private static partial Regex Needed();
}
