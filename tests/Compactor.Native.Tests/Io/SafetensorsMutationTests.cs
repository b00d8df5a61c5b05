using System.Buffers.Binary;
using System.Diagnostics;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Native.Tests.Io;

/// <summary>
/// Random damage to a small valid dump: each result opens and is sound, or is refused with the library's own exception. The bytes lie flush
/// against memory that nobody may read, so that reading past either end ends the process; a process of its own, and that fails the test.
/// </summary>
public sealed unsafe class SafetensorsMutationTests
{
    private const string Name = "damaged", Count = "COMPACTOR_TEST_MUTATIONS";
    private const int InSuite = 20_000, AtLength = 100_000;

    [Fact]
    public void Damaged_files_open_soundly_or_are_refused()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "memory is guarded the Linux way");
        string tests = Path.Combine(AppContext.BaseDirectory, typeof(SafetensorsMutationTests).Assembly.GetName().Name!);
        var start = new ProcessStartInfo(tests, ["--progress", "off", "--no-ansi", "--explicit", "only", "--filter-method", $"*{nameof(Damaged_files_open_soundly_or_are_refused_at_length)}"])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        start.Environment[Count] = $"{InSuite}";
        using var process = Process.Start(start)!;
        var error = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0 && output.Contains("succeeded: 1", StringComparison.Ordinal), $"exit code {process.ExitCode}\n{output}\n{error.Result}");
    }

    [Fact(Explicit = true)]
    public void Damaged_files_open_soundly_or_are_refused_at_length()
    {
        int mutations = Environment.GetEnvironmentVariable(Count) is { } count ? int.Parse(count) : AtLength;
        byte[] valid = ValidDump();
        var random = new Random(mutations);
        int opened = 0, refused = 0, dumps = 0;
        for (int i = 0; i < mutations; i++)
        {
            byte[] damaged = valid;
            for (int edits = 1 + random.Next(3) / 2; edits > 0; edits--)
                damaged = Damage(damaged, random);
            try
            {
                using (var file = Open(damaged, atEnd: i % 2 == 0))
                    TouchEverything(file, damaged);
                opened++;
                var layout = i / 2 % 2 == 0 ? KvLayout.PackedTokens : KvLayout.BatchHeadSequence;
                using var dump = KvDump.Of(Open(damaged, atEnd: i % 2 == 0), layout);
                dumps++;
            }
            catch (CompactorException e)
            {
                Assert.Contains(Name, e.Message);
                refused++;
            }
            catch (Exception e) when (e is not Xunit.Sdk.IAssertionException)
            {
                Assert.Fail($"mutation {i} of {mutations}: {e}");
            }
        }
        Assert.True(opened > mutations / 20 && refused > mutations / 2 && dumps > 100, $"{opened} opened, {refused} refused, {dumps} dumps: the mutations are one-sided");
    }

    [Theory]
    [InlineData(1)]
    [InlineData(4095)]
    [InlineData(4096)]
    [InlineData(4097)]
    public void Bytes_beside_guarded_ones_cannot_be_read(int length)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "memory is guarded the Linux way");
        using (var memory = new GuardedBytes(new byte[length], atEnd: true))
        {
            Assert.True(GuardedBytes.CanRead(memory.Start) && GuardedBytes.CanRead(memory.Start + length - 1));
            Assert.False(GuardedBytes.CanRead(memory.Start + length));
        }
        using (var memory = new GuardedBytes(new byte[length], atEnd: false))
        {
            Assert.True(GuardedBytes.CanRead(memory.Start) && GuardedBytes.CanRead(memory.Start + length - 1));
            Assert.False(GuardedBytes.CanRead(memory.Start - 1));
        }
    }

    private static SafetensorsFile Open(byte[] bytes, bool atEnd)
    {
        var memory = new GuardedBytes(bytes, atEnd);
        return new SafetensorsFile(Name, memory.Start, bytes.Length, memory);
    }

    private static byte[] ValidDump()
    {
        using var folder = new TemporaryFolder();
        var writer = new SafetensorsWriter();
        writer.AddMetadata("source", "a \"quoted\" é");
        foreach (string name in (string[])["layers.0.key", "layers.0.value", "layers.0.key_pre_rope"])
            writer.Add(name, SafetensorsType.BF16, [3, 1, 16], new byte[96]);
        writer.Add("layers.0.query", SafetensorsType.F16, [3, 2, 16], new byte[192]);
        writer.Add("cu_seqlens", [3], [0, 1, 3]);
        writer.Add("cos", [3, 16], new float[48]);
        writer.Add("sin", [3, 16], new float[48]);
        writer.Add("phi", SafetensorsType.F64, [16, 1], new byte[128]);
        writer.Add("wide", SafetensorsType.I64, [2], new byte[16]);
        writer.Add("flags", SafetensorsType.BOOL, [0, 3], new byte[0]);
        writer.Save(folder["valid"]);
        return File.ReadAllBytes(folder["valid"]);
    }

    private static byte[] Damage(byte[] file, Random random)
    {
        if (file.Length < 9)
            return [.. file, (byte)random.Next(256)];
        int header = (int)Math.Min(BinaryPrimitives.ReadUInt64LittleEndian(file), (ulong)(file.Length - 8));
        int at = random.Next(2) == 0 ? random.Next(file.Length) : 8 + random.Next(Math.Max(1, header));
        at = Math.Min(at, file.Length - 1);
        byte[] copy = [.. file];
        switch (random.Next(8))
        {
            case 0:
                copy[at] ^= (byte)(1 << random.Next(8));
                return copy;
            case 1:
                copy[at] = (byte)random.Next(256);
                return copy;
            case 2:
                return random.Next(2) == 0 ? copy[..at] : copy[..^random.Next(1, 9)];
            case 3:
                var inserted = new byte[random.Next(1, 9)];
                random.NextBytes(inserted);
                return [.. copy[..at], .. inserted, .. copy[at..]];
            case 4:
                ulong length = random.Next(4) switch
                {
                    0 => (ulong)random.NextInt64(),
                    1 => (ulong)random.Next(copy.Length + 16),
                    2 => ulong.MaxValue - (ulong)random.Next(16),
                    _ => (ulong)(header + random.Next(-8, 9)),
                };
                BinaryPrimitives.WriteUInt64LittleEndian(copy, length);
                return copy;
            case 5:
                int cut = Math.Min(random.Next(1, 9), copy.Length - at);
                return [.. copy[..at], .. copy[(at + cut)..]];
            case 6:
                var structure = Positions(copy, header, "{}[]:,\""u8);
                if (structure.Count > 0)
                    copy[structure[random.Next(structure.Count)]] = "{}[]:,\" 0-"u8[random.Next(10)];
                return copy;
            default:
                var digits = Positions(copy, header, "0123456789"u8);
                for (int i = random.Next(1, 4); i > 0 && digits.Count > 0; i--)
                    copy[digits[random.Next(digits.Count)]] = (byte)('0' + random.Next(10));
                return copy;
        }
    }

    private static List<int> Positions(byte[] file, int header, ReadOnlySpan<byte> wanted)
    {
        var positions = new List<int>();
        for (int i = 8; i < 8 + header; i++)
            if (wanted.Contains(file[i]))
                positions.Add(i);
        return positions;
    }

    private static void TouchEverything(SafetensorsFile file, byte[] expected)
    {
        long dataStart = 8 + (long)BinaryPrimitives.ReadUInt64LittleEndian(expected);
        nint? start = null;
        long offset = dataStart;
        foreach (var tensor in file.Tensors.Values)
        {
            start ??= tensor.Address - (nint)dataStart;
            long begin = tensor.Address - start.Value;
            Assert.Equal(offset, begin);
            Assert.InRange(begin + tensor.ByteLength, dataStart, expected.Length);
            Assert.Equal(0, begin % tensor.Type.Size());
            Assert.True(tensor.Bytes().SequenceEqual(expected.AsSpan((int)begin, (int)tensor.ByteLength)));
            Convert(() => tensor.ToFloat32().Length, tensor);
            Convert(() => tensor.ToInt32().Length, tensor);
            offset = begin + tensor.ByteLength;
        }
        Assert.Equal(expected.Length, offset);
    }

    private static void Convert(Func<int> convert, SafetensorsTensor tensor)
    {
        try
        {
            Assert.Equal(tensor.Elements, convert());
        }
        catch (CompactorException e)
        {
            Assert.True(e.Status is CompactorStatus.Unsupported or CompactorStatus.InvalidFile);
        }
    }
}
