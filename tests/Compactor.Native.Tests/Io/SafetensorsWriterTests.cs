using System.Buffers.Binary;
using System.Diagnostics;
using System.Text;
using Compactor.Native.Io;
using FsCheck;
using FsCheck.Fluent;
using Xunit;

namespace Compactor.Native.Tests.Io;

public sealed class SafetensorsWriterTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    private sealed record Declared(string Name, SafetensorsType Type, long[] Shape)
    {
        public byte[] Bytes { get; } = Fill(Name, Shape.Aggregate((long)Type.Size(), (a, b) => a * b));

        private static byte[] Fill(string name, long length)
        {
            var bytes = new byte[length];
            new Random(name.Length).NextBytes(bytes);
            return bytes;
        }
    }

    private static Gen<Declared[]> Files =>
        (from name in Gen.Elements("a", "b", "layers.0.key", "\"", "\\", "\0", "\u001b", "é", "键", "🙂", " ", "/", "{}").ArrayOf()
         from type in Gen.Elements(Enum.GetValues<SafetensorsType>())
         from shape in Gen.Choose(0, 5).Select(n => (long)n).ArrayOf().Resize(4)
         select new Declared(string.Concat(name), type, shape))
        .ArrayOf().Resize(12).Select(all => all.DistinctBy(t => t.Name).ToArray());

    [Fact]
    public void What_is_written_is_read_back()
    {
        var metadata = new Dictionary<string, string> { ["z"] = "1", ["a\n"] = "\"é🙂", [""] = "" };
        int round = 0, tensors = 0;
        var property = Prop.ForAll(Files.ToArbitrary(), declared =>
        {
            string path = _folder[$"r{round++}"];
            Writer(declared, metadata).Save(path);
            using var file = SafetensorsFile.Open(path);
            Assert.Equal(declared.Select(t => t.Name).Order(StringComparer.Ordinal), file.Tensors.Keys.Order(StringComparer.Ordinal));
            foreach (var t in declared)
            {
                var read = file.Tensors[t.Name];
                Assert.Equal((t.Name, t.Type), (read.Name, read.Type));
                Assert.Equal(t.Shape, read.Shape);
                Assert.Equal(t.Bytes, read.Bytes().ToArray());
            }
            Assert.Equal(metadata.OrderBy(m => m.Key), file.Metadata.OrderBy(m => m.Key));

            byte[] bytes = File.ReadAllBytes(path);
            Assert.Equal(0UL, BinaryPrimitives.ReadUInt64LittleEndian(bytes) % 8);
            Writer(declared.Reverse(), metadata.Reverse()).Save(path);
            Assert.Equal(bytes, File.ReadAllBytes(path));
            tensors += declared.Length;
        });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(300).WithReplay(20250708, 143), property);
        Assert.True(tensors > 300, $"only {tensors} tensors were tried");
    }

    [Fact]
    public void Data_is_ordered_by_element_size_then_name()
    {
        var writer = new SafetensorsWriter();
        foreach (var (name, type) in (ReadOnlySpan<(string, SafetensorsType)>)[("a", SafetensorsType.U8), ("b", SafetensorsType.F64), ("d", SafetensorsType.F16), ("c", SafetensorsType.BF16)])
            writer.Add(name, type, [1], new byte[type.Size()]);
        writer.Save(_folder["x"]);
        using var file = SafetensorsFile.Open(_folder["x"]);
        Assert.Equal(["b", "c", "d", "a"], file.Tensors.Keys);
        Assert.Equal(
            "{\"b\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]},\"c\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[8,10]}," +
            "\"d\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[10,12]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[12,13]}}",
            Encoding.UTF8.GetString(File.ReadAllBytes(_folder["x"])[8..^13]).TrimEnd(' '));
    }

    [Fact]
    public unsafe void Pieces_and_addresses_give_the_same_file_as_memory()
    {
        int[] values = [.. Enumerable.Range(0, 100_000)];
        fixed (int* address = values)
        {
            nint start = (nint)address;
            Write("memory", w => w.Add("x", [100, 1000], values));
            Write("address", w => w.Add("x", SafetensorsType.I32, [100, 1000], start, 400_000));
            Write("pieces", w => w.Add("x", SafetensorsType.I32, [100, 1000], write =>
            {
                for (int i = 0; i < 400_000; i += 999)
                    write(new ReadOnlySpan<byte>((byte*)start + i, Math.Min(999, 400_000 - i)));
            }));
        }
        Assert.Equal(File.ReadAllBytes(_folder["memory"]), File.ReadAllBytes(_folder["address"]));
        Assert.Equal(File.ReadAllBytes(_folder["memory"]), File.ReadAllBytes(_folder["pieces"]));

        void Write(string name, Action<SafetensorsWriter> add)
        {
            var writer = new SafetensorsWriter();
            add(writer);
            writer.Save(_folder[name]);
        }
    }

    [Fact]
    public void Files_are_as_the_official_implementation_writes_them()
    {
        var writer = new SafetensorsWriter();
        writer.Add("attn0", [1, 1, 2, 3], [0f, 1, 2, 3, 4, 5]);
        writer.Save(_folder["attn0"]);
        Assert.Equal(
            [72, 0, 0, 0, 0, 0, 0, 0, .. "{\"attn0\":{\"dtype\":\"F32\",\"shape\":[1,1,2,3],\"data_offsets\":[0,24]}}       "u8,
                0, 0, 0, 0, 0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64, 0, 0, 128, 64, 0, 0, 160, 64],
            File.ReadAllBytes(_folder["attn0"]));

        new SafetensorsWriter().Save(_folder["empty"]);
        Assert.Equal([8, 0, 0, 0, 0, 0, 0, 0, .. "{}      "u8], File.ReadAllBytes(_folder["empty"]));
        using var file = SafetensorsFile.Open(_folder["empty"]);
        Assert.Empty(file.Tensors);
    }

    [Fact]
    public void Wrong_declarations_are_refused()
    {
        var writer = new SafetensorsWriter();
        writer.Add("x", [1], [1f]);
        writer.AddMetadata("k", "v");
        Refuses(() => writer.Add("x", SafetensorsType.U8, [0], new byte[0]), "'x' was added before");
        Refuses(() => writer.AddMetadata("k", "w"), "'k' was added before");
        Refuses(() => writer.Add("__metadata__", SafetensorsType.U8, [0], new byte[0]), "'__metadata__' names the file's metadata");
        Refuses(() => writer.Add("y", SafetensorsType.F32, [2, 3], new byte[23]), "'y' takes 24 bytes as F32 [2, 3]; 23 were given");
        Refuses(() => writer.Add("y", [2], [1f]), "'y' takes 8 bytes as F32 [2]; 4 were given");
        Refuses(() => writer.Add("y", [2], [1]), "'y' takes 8 bytes as I32 [2]; 4 were given");
        Refuses(() => writer.Add("y", SafetensorsType.U8, [2], 0, 2), "'y' has a null address");
        Refuses(() => writer.Add("y", SafetensorsType.U8, [-2, -3], new byte[6]), "'y' has shape [-2, -3]; dimensions must not be negative");
        Refuses(() => writer.Add("y", SafetensorsType.F64, [1L << 61], new byte[6]), "exceeds 63 bits");
        Refuses(() => writer.Add("y", SafetensorsType.U8, new long[65], new byte[0]), "'y' has 65 dimensions");
        Refuses(() => writer.Add("y\ud83d", SafetensorsType.U8, [0], new byte[0]), "half of a surrogate pair at index 1");
        Refuses(() => writer.Add("y", (SafetensorsType)99, [0], new byte[0]), "no safetensors type 99");
        writer.Save(_folder["x"]);
        using var file = SafetensorsFile.Open(_folder["x"]);
        Assert.Equal(["x"], file.Tensors.Keys);

        var huge = new SafetensorsWriter();
        huge.Add("a", SafetensorsType.U8, [long.MaxValue], _ => { });
        huge.Add("b", SafetensorsType.U8, [1], _ => { });
        Refuses(() => huge.Save(_folder["huge"]), "up to 'b' exceed 63 bits");
    }

    [Fact]
    public void A_failing_source_leaves_the_old_file_and_nothing_else()
    {
        string path = _folder["cache.safetensors"];
        File.WriteAllText(path, "old");
        Fails<InvalidOperationException>(write => throw new InvalidOperationException("device lost"), "device lost");
        Fails<InvalidOperationException>(write =>
        {
            write(new byte[5_000_000]);
            throw new InvalidOperationException("device lost");
        }, "device lost");
        Fails<IOException>(write => throw new IOException("host unreachable"), "host unreachable");
        Fails<CompactorException>(write => write(new byte[9_999_999]), "'last' takes 10000000 bytes as U8 [10000000]; its source gave only 9999999");
        Fails<CompactorException>(write =>
        {
            write(new byte[10_000_000]);
            write(new byte[1]);
        }, "its source gave more");

        void Fails<T>(Action<SafetensorsPieceWriter> source, string message) where T : Exception
        {
            var writer = new SafetensorsWriter();
            writer.Add("first", [1], [1f]);
            writer.Add("last", SafetensorsType.U8, [10_000_000], source);
            Assert.Contains(message, Assert.Throws<T>(() => writer.Save(path)).Message);
            Assert.Equal("old", File.ReadAllText(path));
            Assert.Equal([path], Directory.GetFileSystemEntries(_folder.Root));
        }
    }

    [Fact]
    public void A_destination_that_cannot_be_written_is_named_and_leaves_nothing()
    {
        var writer = new SafetensorsWriter();
        writer.Add("x", [1], [1f]);
        Directory.CreateDirectory(_folder["folder"]);
        foreach (var (path, problem) in ((string, string)[])[(_folder["folder"], "is not a regular file"), (_folder["nowhere/x"], "cannot be written")])
        {
            var e = Assert.Throws<CompactorException>(() => writer.Save(path));
            Assert.Equal(CompactorStatus.InvalidFile, e.Status);
            Assert.Contains($"'{path}' {problem}", e.Message);
        }
        Assert.Equal([_folder["folder"]], Directory.GetFileSystemEntries(_folder.Root));
    }

    [Fact]
    public void A_pipe_a_device_and_a_link_to_a_folder_are_not_replaced()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "special files are looked for on Linux");
        var writer = new SafetensorsWriter();
        writer.Add("x", [1], [1f]);
        Directory.CreateDirectory(_folder["folder"]);
        File.CreateSymbolicLink(_folder["link"], _folder["folder"]);
        using (var mkfifo = Process.Start("mkfifo", [_folder["pipe"]]))
            mkfifo.WaitForExit();
        string[] before = Directory.GetFileSystemEntries(_folder.Root);
        Assert.Equal(3, before.Length);
        // A link to the device: renaming would replace the link, never the device that all processes use.
        File.CreateSymbolicLink(_folder["device"], "/dev/full");
        foreach (string name in (string[])["pipe", "device", "link"])
            Assert.Contains($"'{_folder[name]}' is not a regular file", Assert.Throws<CompactorException>(() => writer.Save(_folder[name])).Message);
        Assert.NotNull(new FileInfo(_folder["link"]).LinkTarget);
        Assert.NotNull(new FileInfo(_folder["device"]).LinkTarget);
        Assert.Equal([.. before, _folder["device"]], Directory.GetFileSystemEntries(_folder.Root).OrderBy(entry => entry == _folder["device"]));
    }

    [Fact]
    public void A_link_stays_a_link_and_what_it_leads_to_is_written()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "links need a privilege on Windows");
        // files/real <- files/second <- inner/first, a folder further down that is reached through a link: ".." goes up from where that leads.
        Directory.CreateDirectory(_folder["files/inner"]);
        Directory.CreateDirectory(_folder["links"]);
        Directory.CreateSymbolicLink(_folder["links/inner"], _folder["files/inner"]);
        File.CreateSymbolicLink(_folder["files/inner/first"], "../second");
        File.CreateSymbolicLink(_folder["files/second"], _folder["files/real"]);
        string link = _folder["links/inner/first"];
        foreach (float value in (float[])[1, 2])
        {
            // The first time, the last link dangles.
            var writer = new SafetensorsWriter();
            writer.Add("x", SafetensorsType.F32, [1], write =>
            {
                Assert.Single(Directory.GetFiles(_folder["files"], "real.*.tmp"));
                write(BitConverter.GetBytes(value));
            });
            writer.Save(link);
            Assert.Equal("../second", new FileInfo(_folder["files/inner/first"]).LinkTarget);
            Assert.Equal(_folder["files/real"], new FileInfo(_folder["files/second"]).LinkTarget);
            Assert.Null(new FileInfo(_folder["files/real"]).LinkTarget);
            using var file = SafetensorsFile.Open(_folder["files/real"]);
            Assert.Equal([value], file.Tensors["x"].ToFloat32());
            Assert.Equal(2, Directory.GetFiles(_folder["files"]).Length);
            Assert.Equal([_folder["links/inner"]], Directory.GetFileSystemEntries(_folder["links"]));
            Assert.Equal([_folder["files/inner/first"]], Directory.GetFileSystemEntries(_folder["files/inner"]));
        }
    }

    [Fact]
    public void A_link_that_leads_nowhere_writable_is_one_error_and_stays()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "links need a privilege on Windows");
        File.CreateSymbolicLink(_folder["a"], "b");
        File.CreateSymbolicLink(_folder["b"], _folder["a"]);
        File.CreateSymbolicLink(_folder["self"], "self");
        File.CreateSymbolicLink(_folder["nowhere"], "missing/x");
        string[] before = Directory.GetFileSystemEntries(_folder.Root);
        var writer = new SafetensorsWriter();
        writer.Add("x", [1], [1f]);
        foreach (var (name, problem) in ((string, string)[])[("a", "links lead in a circle"), ("self", "links lead in a circle"), ("nowhere", "cannot be written")])
        {
            var e = Assert.Throws<CompactorException>(() => writer.Save(_folder[name]));
            Assert.Equal(CompactorStatus.InvalidFile, e.Status);
            Assert.StartsWith($"'{_folder[name]}' ", e.Message);
            Assert.Contains(problem, e.Message);
        }
        Assert.Equal(before, Directory.GetFileSystemEntries(_folder.Root));
    }

    [Fact]
    public void Cancelling_leaves_the_old_file_and_nothing_else()
    {
        string path = _folder["cache.safetensors"];
        File.WriteAllText(path, "old");
        using var cancellation = new CancellationTokenSource();
        var writer = new SafetensorsWriter();
        writer.Add("x", SafetensorsType.U8, [10_000_000], write =>
        {
            write(new byte[5_000_000]);
            cancellation.Cancel();
            write(new byte[5_000_000]);
        });
        Assert.Throws<OperationCanceledException>(() => writer.Save(path, cancellation.Token));
        Assert.Equal("old", File.ReadAllText(path));
        Assert.Equal([path], Directory.GetFileSystemEntries(_folder.Root));
    }

    [Fact]
    public void Replacing_an_open_file_keeps_its_readers_intact()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "a mapped file cannot be replaced on Windows");
        string path = _folder["x"];
        Save(1f);
        using var old = SafetensorsFile.Open(path);
        Save(2f);
        using var renewed = SafetensorsFile.Open(path);
        Assert.Equal([1f], old.Tensors["x"].ToFloat32());
        Assert.Equal([2f], renewed.Tensors["x"].ToFloat32());

        void Save(float value)
        {
            var writer = new SafetensorsWriter();
            writer.Add("x", [1], [value]);
            writer.Save(path);
        }
    }

    private static SafetensorsWriter Writer(IEnumerable<Declared> tensors, IEnumerable<KeyValuePair<string, string>> metadata)
    {
        var writer = new SafetensorsWriter();
        foreach (var t in tensors)
            writer.Add(t.Name, t.Type, t.Shape, t.Bytes);
        foreach (var (key, value) in metadata)
            writer.AddMetadata(key, value);
        return writer;
    }

    private static void Refuses(Action action, string message)
    {
        var e = Assert.Throws<CompactorException>(action);
        Assert.Equal(CompactorStatus.InvalidArgument, e.Status);
        Assert.Contains(message, e.Message);
    }
}
