using System.Text;
using Compactor.Native.Io;
using Xunit;
using static Compactor.Native.Tests.Io.SafetensorsBytes;

namespace Compactor.Native.Tests.Io;

public sealed class SafetensorsFileTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public static TheoryData<string> GoldenFiles => [.. Directory.GetFiles(Path.Combine(AppContext.BaseDirectory, "data", "golden"), "*.safetensors").Select(path => Path.GetFileName(path)!)];

    public void Dispose() => _folder.Dispose();

    [Theory]
    [MemberData(nameof(GoldenFiles))]
    public void Every_golden_file_is_read(string name)
    {
        using var file = SafetensorsFile.Open(Path.Combine(AppContext.BaseDirectory, "data", "golden", name));
        Assert.NotEmpty(file.Tensors);
        Assert.True(file.Metadata.ContainsKey("source"));
        foreach (var tensor in file.Tensors.Values)
        {
            Assert.Equal(tensor.Shape.Aggregate(1L, (a, b) => a * b), tensor.Elements);
            Assert.Equal(0, tensor.Address % tensor.Type.Size());
            if (tensor.Type == SafetensorsType.I32)
                Assert.All(tensor.ToInt32(), x => Assert.True(x >= 0));
            else
                Assert.All(tensor.ToFloat32(), x => Assert.False(float.IsNaN(x)));
        }
    }

    [Fact]
    public void Values_and_metadata_are_read()
    {
        using var file = Open("{\"__metadata__\":{\"a\":\"b\",\"\":\"\\u00e9\"}," + Tensor("x", "I32", "[2,1]", "[0,8]") + "," + Tensor("scalar", "U8", "[]", "[8,9]") + "}", 9);
        Assert.Equal("b", file.Metadata["a"]);
        Assert.Equal("é", file.Metadata[""]);
        var x = file.Tensors["x"];
        Assert.Equal([2L, 1L], x.Shape);
        Assert.Equal([0x03020100, 0x07060504], x.ToInt32());
        Assert.Equal([2, 3, 4], x.Bytes(2, 3).ToArray());
        Assert.Equal([8], file.Tensors["scalar"].Bytes().ToArray());
        Assert.Equal("x I32 [2, 1]", x.ToString());
        Assert.Throws<CompactorException>(() => x.Bytes(6, 3).Length);
        Assert.Throws<CompactorException>(() => x.Bytes(-1, 3).Length);
        Assert.Throws<CompactorException>(() => x.Bytes(long.MaxValue, 3).Length);
    }

    [Fact]
    public void Floats_convert()
    {
        var writer = new SafetensorsWriter();
        float[] values = [0, -1.5f, float.PositiveInfinity, 1e-3f];
        writer.Add("f64", SafetensorsType.F64, [4], Bytes(values.Select(v => (double)v).ToArray()));
        writer.Add("f32", [4], values);
        writer.Add("f16", SafetensorsType.F16, [3], Bytes(values[..3].Select(v => (Half)v).ToArray()));
        writer.Add("bf16", SafetensorsType.BF16, [3], Bytes(values[..3].Select(v => (ushort)(BitConverter.SingleToUInt32Bits(v) >> 16)).ToArray()));
        writer.Add("f8", SafetensorsType.F8_E4M3, [1], new byte[1]);
        writer.Save(_folder["f"]);
        using var file = SafetensorsFile.Open(_folder["f"]);
        Assert.Equal(values, file.Tensors["f64"].ToFloat32());
        Assert.Equal(values, file.Tensors["f32"].ToFloat32());
        Assert.Equal(values[..3], file.Tensors["f16"].ToFloat32());
        Assert.Equal(values[..3], file.Tensors["bf16"].ToFloat32());
        Assert.Contains("'f8' (F8_E4M3 [1])", Assert.Throws<CompactorException>(() => file.Tensors["f8"].ToFloat32()).Message);
        Assert.Equal(CompactorStatus.Unsupported, Assert.Throws<CompactorException>(() => file.Tensors["f32"].ToInt32()).Status);
    }

    [Fact]
    public void Integers_convert_when_they_fit()
    {
        var writer = new SafetensorsWriter();
        writer.Add("i64", SafetensorsType.I64, [2], Bytes<long>([int.MinValue, int.MaxValue]));
        writer.Add("i16", SafetensorsType.I16, [2], Bytes<short>([-1, 2]));
        writer.Add("i8", SafetensorsType.I8, [2], Bytes<sbyte>([-1, 2]));
        writer.Add("u8", SafetensorsType.U8, [2], Bytes<byte>([255, 2]));
        writer.Add("bool", SafetensorsType.BOOL, [2], Bytes<byte>([1, 0]));
        writer.Add("u16", SafetensorsType.U16, [2], Bytes<ushort>([65535, 2]));
        writer.Add("i64 low", SafetensorsType.I64, [1], Bytes<long>([int.MinValue - 1L]));
        writer.Add("u32 high", SafetensorsType.U32, [2], Bytes<uint>([int.MaxValue, int.MaxValue + 1u]));
        writer.Add("u64 high", SafetensorsType.U64, [1], Bytes<ulong>([ulong.MaxValue]));
        writer.Save(_folder["i"]);
        using var file = SafetensorsFile.Open(_folder["i"]);
        Assert.Equal([int.MinValue, int.MaxValue], file.Tensors["i64"].ToInt32());
        Assert.Equal([-1, 2], file.Tensors["i16"].ToInt32());
        Assert.Equal([-1, 2], file.Tensors["i8"].ToInt32());
        Assert.Equal([255, 2], file.Tensors["u8"].ToInt32());
        Assert.Equal([1, 0], file.Tensors["bool"].ToInt32());
        Assert.Equal([65535, 2], file.Tensors["u16"].ToInt32());
        Assert.Contains("-2147483649 at index 0", Assert.Throws<CompactorException>(() => file.Tensors["i64 low"].ToInt32()).Message);
        Assert.Contains("2147483648 at index 1", Assert.Throws<CompactorException>(() => file.Tensors["u32 high"].ToInt32()).Message);
        Assert.Contains("18446744073709551615 at index 0", Assert.Throws<CompactorException>(() => file.Tensors["u64 high"].ToInt32()).Message);
    }

    [Fact]
    public void A_missing_file_is_named()
    {
        Rejects(_folder["nowhere/x.safetensors"], "nowhere/x.safetensors' does not exist");
        Rejects(_folder["x.safetensors"], "x.safetensors' does not exist");
        Rejects("", "cannot be opened");
    }

    [Fact]
    public void A_folder_or_pipe_is_named_and_never_waited_for()
    {
        Rejects(_folder.Root, "is a folder; name a safetensors file in it");
        using (var mkfifo = System.Diagnostics.Process.Start("mkfifo", [_folder["pipe"]]))
            mkfifo.WaitForExit();
        System.IO.File.CreateSymbolicLink(_folder["link"], "pipe");
        foreach (string special in (string[])[_folder["pipe"], _folder["link"], "/dev/zero"])
            Rejects(special, $"'{special}' is a pipe, socket or device");
    }

    [Theory]
    [InlineData(0)]
    [InlineData(7)]
    public void A_file_without_a_length_is_refused(int bytes) => Rejects(new byte[bytes], $"the file has {bytes} bytes");

    [Theory]
    [InlineData(0, "header length is 0;")]
    [InlineData(100_000_001, "header length is 100000001;")]
    [InlineData(ulong.MaxValue, "header length is 18446744073709551615;")]
    [InlineData(11, "header length is 11, but only 10 bytes follow")]
    public void A_wrong_header_length_is_refused(ulong stated, string problem) => Rejects(FileOf("{}"u8.ToArray(), 8, stated), problem);

    [Fact]
    public void The_longest_header_opens()
    {
        var header = new byte[100_000_000];
        header.AsSpan().Fill((byte)' ');
        "{}"u8.CopyTo(header);
        using var file = SafetensorsFile.Open(_folder.Write("long", FileOf(header, 0)));
        Assert.Empty(file.Tensors);
    }

    [Theory]
    [InlineData("[]", "starts with byte 0x5B")]
    [InlineData(" {}", "starts with byte 0x20")]
    [InlineData("{", "not valid JSON")]
    [InlineData("{]", "not valid JSON")]
    [InlineData("{\"a\":}", "not valid JSON")]
    [InlineData("{}{}", "byte 0x7B follows the JSON object at position 2")]
    [InlineData("{} \n", "byte 0x0A follows the JSON object at position 3")]
    [InlineData("{} \0", "byte 0x00 follows the JSON object at position 3")]
    [InlineData("{\"a\":1}", "'a' is described by '1'")]
    [InlineData("{\"a\":null}", "'a' is described by 'null'")]
    [InlineData("{\"a\\ud800\":{}}", "half of a surrogate pair")]
    [InlineData("{\"a\":{}}", "'a' has no dtype")]
    [InlineData("{\"a\":{\"dtype\":\"U8\"}}", "'a' has no shape")]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", "'a' has no data_offsets")]
    [InlineData("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", "'a' has dtype twice")]
    [InlineData("{\"a\":{\"dtype\":\"F31\"}}", "'a' has dtype 'F31'; known are F64, F32,")]
    [InlineData("{\"a\":{\"dtype\":\"f32\"}}", "'a' has dtype 'f32'")]
    [InlineData("{\"a\":{\"dtype\":3}}", "'a' has dtype '3'")]
    [InlineData("{\"a\":{\"shape\":5}}", "'a' has shape '5'; expected an array")]
    [InlineData("{\"a\":{\"shape\":[-1]}}", "'a' has '-1' in shape")]
    [InlineData("{\"a\":{\"shape\":[1.5]}}", "'a' has '1.5' in shape")]
    [InlineData("{\"a\":{\"shape\":[1e3]}}", "'a' has '1e3' in shape")]
    [InlineData("{\"a\":{\"shape\":[9223372036854775808]}}", "'a' has '9223372036854775808' in shape")]
    [InlineData("{\"a\":{\"shape\":[\"1\"]}}", "'a' has '1' in shape")]
    [InlineData("{\"a\":{\"shape\":[[1]]}}", "'a' has '[' in shape")]
    [InlineData("{\"a\":{\"data_offsets\":[0,1,2]}}", "'a' has more than 2 entries in data_offsets")]
    [InlineData("{\"a\":{\"data_offsets\":[-8,0]}}", "'a' has '-8' in data_offsets")]
    [InlineData("{\"__metadata__\":[]}", "__metadata__ is '['; expected an object")]
    [InlineData("{\"__metadata__\":{\"k\":1}}", "__metadata__ entry 'k' is '1'; expected a string")]
    [InlineData("{\"__metadata__\":{\"k\":\"\",\"k\":\"\"}}", "__metadata__ has 'k' twice")]
    [InlineData("{\"__metadata__\":{},\"__metadata__\":{}}", "names '__metadata__' twice")]
    public void A_malformed_header_is_refused(string json, string problem) => Rejects(FileOf(Encoding.UTF8.GetBytes(json), 0), problem);

    [Fact]
    public void A_header_that_is_not_utf8_is_refused() =>
        Rejects(FileOf([.. "{\"a"u8, 0xFF, .. "\":{}}"u8], 0), "not UTF-8: byte 0xFF at position 3");

    [Theory]
    [InlineData("U8", "[4]", "[4,0]", "'a' has data_offsets [4, 0]; expected [begin, end]")]
    [InlineData("U8", "[4]", "[4]", "'a' has data_offsets [4]; expected [begin, end]")]
    [InlineData("F32", "[4]", "[0,15]", "'a' has 15 bytes at data_offsets [0, 15]; F32 [4] takes 16")]
    [InlineData("F32", "[2,3]", "[0,16]", "F32 [2, 3] takes 24")]
    [InlineData("U8", "[0,5]", "[0,16]", "U8 [0, 5] takes 0")]
    [InlineData("U8", "[4294967296,4294967296]", "[0,16]", "[4294967296, 4294967296], whose size in bytes exceeds")]
    [InlineData("U8", "[0,4294967296,4294967296]", "[0,0]", "whose size in bytes exceeds")]
    [InlineData("F64", "[1152921504606846976]", "[0,16]", "whose size in bytes exceeds")]
    [InlineData("F32", "[5]", "[0,20]", "'a' at data_offsets [0, 20] reaches beyond the end of the file, which holds 16 bytes")]
    [InlineData("U8", "[0]", "[9223372036854775807,9223372036854775807]", "reaches beyond the end of the file")]
    [InlineData("F32", "[3]", "[4,16]", "'a' at data_offsets [4, 16] leaves a hole: bytes 0 to 4")]
    [InlineData("F32", "[3]", "[0,12]", "4 bytes follow the last tensor's data, which ends at 12 of 16")]
    public void A_tensor_that_does_not_fit_its_bytes_is_refused(string type, string shape, string offsets, string problem) =>
        Rejects(File("{" + Tensor("a", type, shape, offsets) + "}", 16), problem);

    [Theory]
    [InlineData("[0,8]", "[4,12]", "'b' at data_offsets [4, 12] overlaps 'a', which ends at 8")]
    [InlineData("[0,8]", "[0,8]", "overlaps")]
    [InlineData("[8,16]", "[4,12]", "'b' at data_offsets [4, 12] leaves a hole: bytes 0 to 4")]
    [InlineData("[4,12]", "[0,8]", "'a' at data_offsets [4, 12] overlaps 'b'")]
    public void Overlapping_tensors_are_refused(string a, string b, string problem) =>
        Rejects(File("{" + Tensor("a", "U8", "[8]", a) + "," + Tensor("b", "U8", "[8]", b) + "}", 16), problem);

    [Fact]
    public void A_repeated_name_is_refused() =>
        Rejects(File("{" + Tensor("a", "U8", "[8]", "[0,8]") + "," + Tensor("\\u0061", "U8", "[8]", "[8,16]") + "}", 16), "names 'a' twice");

    [Fact]
    public void A_misaligned_tensor_is_refused()
    {
        var unpadded = Encoding.UTF8.GetBytes("{" + Tensor("a", "F32", "[1]", "[0,4]") + "}");
        Assert.NotEqual(0, unpadded.Length % 4);
        Rejects(FileOf(unpadded, 4), $"its file offset {8 + unpadded.Length} is not a multiple of the 4 bytes of F32. Rewrite the file with a header padded");
        Rejects(File("{" + Tensor("a", "U8", "[1]", "[0,1]") + "," + Tensor("b", "F16", "[1]", "[1,3]") + "}", 3), "'b' at data_offsets [1, 3] is misaligned");
    }

    [Fact]
    public void Too_many_dimensions_are_refused() =>
        Rejects(File("{" + Tensor("a", "U8", $"[{string.Join(',', Enumerable.Repeat(1, 65))}]", "[0,1]") + "}", 1), "more than 64 entries in shape");

    [Fact]
    public void Control_characters_and_long_names_do_not_reach_messages()
    {
        string message = Rejects(File("{" + Tensor("\\u001b" + new string('n', 5000), "U8", "[1]", "[0,2]") + "}", 2), "'\uFFFDnnn");
        Assert.True(message.Length < 1000, message);
        Assert.DoesNotContain('\u001b', message);
    }

    [Fact]
    public void Unknown_fields_and_empty_tensors_are_read()
    {
        using var file = Open("{\"a\":{\"note\":{\"deep\":[1,[2]]},\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}," +
            Tensor("none", "F32", "[0,7]", "[8,8]") + "," + Tensor("first", "F64", "[3,0]", "[0,0]") + "}", 8);
        Assert.Equal(3, file.Tensors.Count);
        Assert.Empty(file.Tensors["none"].ToFloat32());
        Assert.Equal([0L, 7L], file.Tensors["none"].Shape);
        Assert.Equal(0, file.Tensors["first"].Bytes().Length);
    }

    [Fact]
    public void Hostile_headers_end_quickly()
    {
        var clock = System.Diagnostics.Stopwatch.StartNew();
        Rejects(File("{\"a\":{\"x\":" + new string('[', 1_000_000), 0), "not valid JSON");
        Rejects(File(string.Concat(Enumerable.Repeat("{\"a\":", 1_000_000)), 0), "twice|not valid JSON|has no");
        Rejects(File("{" + Tensor("a", "U8", "[" + string.Concat(Enumerable.Repeat("1,", 1_000_000)) + "1]", "[0,1]") + "}", 1), "more than 64");
        using var many = Open("{" + string.Join(',', Enumerable.Range(0, 200_000).Select(i => Tensor($"t{i}", "F32", "[0]", "[0,0]"))) + "}", 0);
        Assert.Equal(200_000, many.Tensors.Count);
        Assert.True(clock.Elapsed < TimeSpan.FromMinutes(1), clock.Elapsed.ToString());
    }

    [Fact]
    public void A_tensor_beyond_2_GiB_is_read_in_parts()
    {
        const long length = 3L << 30;
        string path = _folder.Write("large", File("{" + Tensor("a", "U8", $"[{length}]", $"[0,{length}]") + "," + Tensor("b", "U8", "[1]", $"[{length},{length + 1}]") + "}", 0));
        using (var stream = new FileStream(path, FileMode.Open))
        {
            stream.SetLength(stream.Length + length + 1);
            stream.Seek(-2, SeekOrigin.End);
            stream.Write([7, 8]);
        }
        using var file = SafetensorsFile.Open(path);
        var a = file.Tensors["a"];
        Assert.Equal(length, a.Elements);
        Assert.Equal([0, 7], a.Bytes(length - 2, 2).ToArray());
        Assert.Equal([8], file.Tensors["b"].ToInt32());
        Assert.Equal(CompactorStatus.Unsupported, Assert.Throws<CompactorException>(() => a.Bytes().Length).Status);
        Assert.Contains("more than an array holds", Assert.Throws<CompactorException>(() => a.ToInt32()).Message);
        Assert.Throws<CompactorException>(() => a.Bytes(length - 2, 3).Length);
    }

    [Fact]
    public void A_disposed_file_gives_no_addresses()
    {
        var file = Open("{" + Tensor("a", "U8", "[2]", "[0,2]") + "}", 2);
        var tensor = file.Tensors["a"];
        file.Dispose();
        file.Dispose();
        Assert.Throws<ObjectDisposedException>(() => tensor.Address);
        Assert.Throws<ObjectDisposedException>(() => tensor.Bytes().Length);
        Assert.Throws<ObjectDisposedException>(() => tensor.ToInt32());
    }

    private static byte[] Bytes<T>(T[] values) where T : unmanaged => System.Runtime.InteropServices.MemoryMarshal.AsBytes<T>(values).ToArray();

    private SafetensorsFile Open(string json, int dataLength) => SafetensorsFile.Open(_folder.Write("valid", File(json, dataLength)));

    private string Rejects(byte[] bytes, string problem) => Rejects(_folder.Write("broken", bytes), problem);

    /// <summary>Opening fails with a message that names the file and holds one of the alternatives.</summary>
    private static string Rejects(string path, string problem)
    {
        var e = Assert.Throws<CompactorException>(() => SafetensorsFile.Open(path));
        Assert.Equal(CompactorStatus.InvalidFile, e.Status);
        Assert.Contains(path, e.Message);
        Assert.True(problem.Split('|').Any(e.Message.Contains), $"'{e.Message}' does not contain '{problem}'");
        return e.Message;
    }
}
