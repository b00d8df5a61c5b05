using System.Buffers.Binary;
using System.Diagnostics;
using System.Text;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Cli.Tests;

/// <summary>Whatever is wrong with the input or the options of <c>compress</c>, one message says what to do, and nothing is written.</summary>
public class BadInputTests : TemporaryFolder
{
    private static readonly Dictionary<string, (Func<BadInputTests, string> Input, string[] Options, int ExitCode, string[] Mentions)> s_cases = new()
    {
        ["truncated data"] = File(bytes => bytes[..^10], "bytes"),
        ["truncated header"] = File(bytes => bytes[..100], "truncated or no safetensors file"),
        ["no header"] = File(bytes => bytes[..5], "begins with the 8-byte length"),
        ["empty"] = File(_ => [], "begins with the 8-byte length"),
        ["oversized header"] = File(bytes => WithLength(bytes, 200_000_000), "header length is 200000000; use 1 to"),
        ["header beyond the file"] = File(bytes => WithLength(bytes, 50_000_000), "header length is 50000000"),
        ["header length of 64 bits"] = File(bytes => WithLength(bytes, ulong.MaxValue), "header length is 18446744073709551615"),
        ["no safetensors"] = File(_ => Encoding.UTF8.GetBytes("no tensors here, only words"), "may not be a safetensors file"),
        ["overlapping"] = Header("""{"key":{"dtype":"F32","shape":[1,1,16],"data_offsets":[0,64]},"value":{"dtype":"F32","shape":[1,1,16],"data_offsets":[32,96]}}""", 96, "value"),
        ["gap"] = Header("""{"key":{"dtype":"F32","shape":[1,1,16],"data_offsets":[0,64]},"value":{"dtype":"F32","shape":[1,1,16],"data_offsets":[96,160]}}""", 160, "value"),
        ["misaligned"] = Header("""{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"key":{"dtype":"F32","shape":[1,1,16],"data_offsets":[2,66]}}""", 66, "key"),
        ["outside the file"] = Header("""{"key":{"dtype":"F32","shape":[1,1,16],"data_offsets":[0,64]}}""", 32, "key"),
        ["shape of other size"] = Header("""{"key":{"dtype":"F32","shape":[1,1,17],"data_offsets":[0,64]}}""", 64, "key", "takes 68"),
        ["no key"] = Dump(dump => dump.Without("key"), "key"),
        ["no value"] = Dump(dump => dump.Without("value"), "value"),
        ["key of two dimensions"] = Dump(dump => Shaped(dump, "key", 200, 64), "key", "dimensions"),
        ["value of other length"] = Dump(dump => Shaped(dump, "value", 100, 2, 64), "value"),
        ["value of other dimension"] = Dump(dump => Shaped(dump, "value", 200, 4, 16), "value"),
        ["query of other dimension"] = Dump(dump => Shaped(dump, "query", 200, 8, 16), "query"),
        ["dimension that is none"] = Dump(dump => Shaped(Shaped(Shaped(dump, "key", 200, 8, 8).Without("query"), "value", 200, 8, 8), "key_pre_rope", 200, 8, 8), "8"),
        ["3 query heads of 2 KV heads"] = Dump(dump => { dump.Tensors["layers.1.query"] = (SafetensorsType.F16, [200, 3, 32], new byte[200 * 3 * 32 * 2]); return dump; }, "3", "2"),
        ["offsets that go back"] = Dump(dump => Offsets(dump, 0, 150, 100, 200), "cu_seqlens"),
        ["offsets of other length"] = Dump(dump => Offsets(dump, 0, 150), "cu_seqlens"),
        ["no key_pre_rope"] = Dump(dump => dump.Without("key_pre_rope"), "--rope-theta"),
        ["NaN in a key"] = NonFinite("key", Half.NaN),
        ["infinity in a key"] = NonFinite("key", Half.PositiveInfinity),
        ["NaN in a key before RoPE"] = NonFinite("key_pre_rope", Half.NaN),
        ["infinity in a key before RoPE"] = NonFinite("key_pre_rope", Half.NegativeInfinity),
        ["NaN in a query"] = NonFinite("query", Half.NaN),
        ["infinity in a query"] = NonFinite("query", Half.NegativeInfinity),
        ["NaN in a value"] = NonFinite("value", Half.NaN),
        ["bytes for less than what is always kept"] = Option(1, "Raise it to", "--bytes", "4000"),
        ["no bytes"] = Option(2, "The byte budget is 0; use 1", "--bytes", "0"),
        ["no tokens"] = Option(2, "The token budget is 0; use 1", "--tokens", "0"),
        ["negative retention"] = Option(2, "Retention is -0.1", "--retention=-0.1"),
        ["retention above 1"] = Option(2, "1.5", "--retention", "1.5"),
        ["retention that is no number"] = Option(2, "--retention is 'half'; use a number", "--retention", "half"),
        ["two budgets"] = Option(2, "exclude each other", "--retention", "0.5", "--bytes", "100000"),
        ["unknown option"] = Option(2, "--no-such-option", "--no-such-option"),
        ["unknown preset"] = Option(2, "best", "--preset", "best"),
        ["sketch of 20"] = Option(2, "16 to 128 in steps of 16", "--sketch", "20"),
        ["even pool"] = Option(2, "4", "--pool", "4"),
        ["small block"] = Option(2, "--block-size is 15; use 16 to 256", "--block-size", "15"),
        ["rotary dimension without theta"] = Option(2, "--rope-theta", "--rotary-dim", "16"),
        ["wrong layout"] = Option(1, "layout", "--layout", "bhsd"),
        ["absent"] = (test => test.At("absent.safetensors"), [], 1, ["absent.safetensors", "does not exist"]),
        ["folder"] = (test => Directory.CreateDirectory(test.At("folder")).FullName, [], 1, ["is a folder; name a safetensors file in it"]),
        ["pipe"] = (test => test.Pipe(), [], 1, ["is a pipe, socket or device"]),
    };

    public static TheoryData<string> Cases => [.. s_cases.Keys];

    [Theory]
    [MemberData(nameof(Cases))]
    public void One_message_says_what_to_do_and_nothing_is_written(string name)
    {
        var (input, options, exitCode, mentions) = s_cases[name];
        string path = input(this), folder = Path.GetDirectoryName(At("x"))!;
        string[] before = Directory.GetFileSystemEntries(folder);
        var result = Tool.Run(["compress", path, "--out", At("out.safetensors"), "--report", At("report"), .. options]);
        result.FailsWith(exitCode, mentions);
        string[] lines = result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.StartsWith("compactor: ", lines[0]);
        Assert.Equal(exitCode == 2 ? ["See 'compactor --help' or 'compactor <command> --help'."] : [], lines[1..]);
        Assert.Equal(before.Order(), Directory.GetFileSystemEntries(folder).Order());
    }

    private static (Func<BadInputTests, string>, string[], int, string[]) File(Func<byte[], byte[]> damage, params string[] mentions) => (test =>
    {
        string path = new TestDump().Save(test.At("in.safetensors"));
        System.IO.File.WriteAllBytes(path, damage(System.IO.File.ReadAllBytes(path)));
        return path;
    }, [], 1, ["in.safetensors", .. mentions]);

    private static (Func<BadInputTests, string>, string[], int, string[]) Header(string json, int dataLength, params string[] mentions) =>
        File(_ => [.. WithLength(new byte[8], (ulong)(json.Length + 7) / 8 * 8), .. Encoding.UTF8.GetBytes(json.PadRight((json.Length + 7) / 8 * 8)), .. new byte[dataLength]], mentions);

    private static (Func<BadInputTests, string>, string[], int, string[]) Dump(Func<TestDump, TestDump> change, params string[] mentions) =>
        (test => change(new TestDump()).Save(test.At("in.safetensors")), [], 1, mentions);

    /// <summary>In the last layer, so that others were compressed before.</summary>
    private static (Func<BadInputTests, string>, string[], int, string[]) NonFinite(string role, Half value)
    {
        int heads = role == "query" ? TestDump.QueryHeads : TestDump.KvHeads;
        return Dump(dump => dump.With($"layers.1.{role}", (7 * heads + 1) * TestDump.Dim + 5, value), $"Layer 1: {role} holds NaN or infinity at token 7 of sequence 0, head 1", "check what wrote it");
    }

    private static (Func<BadInputTests, string>, string[], int, string[]) Option(int exitCode, string mention, params string[] options) =>
        (test => new TestDump().Save(test.At("in.safetensors")), options, exitCode, [mention]);

    private static byte[] WithLength(byte[] file, ulong length)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(file, length);
        return file;
    }

    private static TestDump Shaped(TestDump dump, string role, params long[] shape)
    {
        foreach (string name in dump.Tensors.Keys.Where(name => name.EndsWith("." + role, StringComparison.Ordinal)).ToList())
            dump.Tensors[name] = dump.Tensors[name] with { Shape = shape, Bytes = dump.Tensors[name].Bytes[..(int)(2 * shape.Aggregate(1L, (a, b) => a * b))] };
        return dump;
    }

    private static TestDump Offsets(TestDump dump, params int[] offsets)
    {
        dump.Tensors["cu_seqlens"] = (SafetensorsType.I32, [offsets.Length], System.Runtime.InteropServices.MemoryMarshal.AsBytes<int>(offsets).ToArray());
        return dump;
    }

    private string Pipe()
    {
        using var mkfifo = Process.Start("mkfifo", [At("pipe")]);
        mkfifo.WaitForExit();
        return At("pipe");
    }
}
