using System.Buffers.Binary;
using System.Text;

namespace Compactor.Native.Cuda;

/// <summary>What a kernel takes of a multiprocessor.</summary>
/// <param name="Registers">Registers of a thread.</param>
/// <param name="StackBytes">Local memory of a thread: spilled registers and arrays.</param>
/// <param name="StaticSharedBytes">Shared memory of a block that the source declares.</param>
/// <param name="CodeBytes">Machine code.</param>
/// <param name="MostThreads">Threads of a block it was compiled for (<c>__launch_bounds__</c>).</param>
internal readonly record struct KernelResources(int Registers, int StackBytes, int StaticSharedBytes, int CodeBytes, int MostThreads);

/// <summary>Reads the resources of kernels from a cubin, which is an ELF file: registers and stack from <c>.nv.info</c>, sizes from the sections of each kernel.</summary>
internal static class CubinResources
{
    private const byte MaxThreads = 0x05, FrameSize = 0x11, RegisterCount = 0x2f, FormatSized = 0x04;
    private const int SymbolTable = 2;

    /// <summary>Resources by entry point.</summary>
    /// <exception cref="InvalidDataException">It is no cubin.</exception>
    public static IReadOnlyDictionary<string, KernelResources> Read(ReadOnlySpan<byte> cubin)
    {
        if (cubin.Length < 64 || !cubin[..5].SequenceEqual((ReadOnlySpan<byte>)[0x7f, (byte)'E', (byte)'L', (byte)'F', 2]))
            throw new InvalidDataException("It is no 64-bit ELF file.");
        var sections = Sections(cubin);
        string[] symbols = [];
        foreach (var section in sections)
            if (section.Type == SymbolTable)
                symbols = Symbols(cubin, section, sections[section.Link]);
        var registers = new Dictionary<string, int>();
        var stack = new Dictionary<string, int>();
        foreach (var section in sections)
            if (section.Name == ".nv.info")
                ReadInfo(cubin.Slice(section.Offset, section.Size), symbols, registers, stack);
        var resources = new SortedDictionary<string, KernelResources>(StringComparer.Ordinal);
        foreach (var section in sections)
            if (section.Name.StartsWith(".text.", StringComparison.Ordinal))
            {
                string entry = section.Name[".text.".Length..];
                resources.Add(entry, new KernelResources(registers.GetValueOrDefault(entry), stack.GetValueOrDefault(entry),
                    sections.Where(s => s.Name == ".nv.shared." + entry).Sum(s => s.Size), section.Size, MostThreads(cubin, sections, entry)));
            }
        return resources;
    }

    private static int MostThreads(ReadOnlySpan<byte> cubin, List<Section> sections, string entry)
    {
        foreach (var section in sections)
            if (section.Name == ".nv.info." + entry)
                for (int at = section.Offset; at + 4 <= section.Offset + section.Size;)
                {
                    int size = cubin[at] == FormatSized ? BinaryPrimitives.ReadUInt16LittleEndian(cubin[(at + 2)..]) : 0;
                    if (cubin[at + 1] == MaxThreads && size == 12)
                        return BinaryPrimitives.ReadInt32LittleEndian(cubin[(at + 4)..]) * BinaryPrimitives.ReadInt32LittleEndian(cubin[(at + 8)..]) * BinaryPrimitives.ReadInt32LittleEndian(cubin[(at + 12)..]);
                    at += 4 + size;
                }
        return 0;
    }

    private readonly record struct Section(string Name, int Type, int Offset, int Size, int Link);

    private static List<Section> Sections(ReadOnlySpan<byte> elf)
    {
        int table = (int)BinaryPrimitives.ReadUInt64LittleEndian(elf[40..]), entry = BinaryPrimitives.ReadUInt16LittleEndian(elf[58..]);
        int count = BinaryPrimitives.ReadUInt16LittleEndian(elf[60..]), names = BinaryPrimitives.ReadUInt16LittleEndian(elf[62..]);
        int namesAt = (int)BinaryPrimitives.ReadUInt64LittleEndian(elf[(table + names * entry + 24)..]);
        var sections = new List<Section>(count);
        for (int i = 0; i < count; i++)
        {
            var header = elf.Slice(table + i * entry, entry);
            sections.Add(new Section(Text(elf, namesAt + BinaryPrimitives.ReadInt32LittleEndian(header)), BinaryPrimitives.ReadInt32LittleEndian(header[4..]),
                (int)BinaryPrimitives.ReadUInt64LittleEndian(header[24..]), (int)BinaryPrimitives.ReadUInt64LittleEndian(header[32..]), BinaryPrimitives.ReadInt32LittleEndian(header[40..])));
        }
        return sections;
    }

    private static string[] Symbols(ReadOnlySpan<byte> elf, Section table, Section names)
    {
        const int symbolBytes = 24;
        var symbols = new string[table.Size / symbolBytes];
        for (int i = 0; i < symbols.Length; i++)
            symbols[i] = Text(elf, names.Offset + BinaryPrimitives.ReadInt32LittleEndian(elf[(table.Offset + i * symbolBytes)..]));
        return symbols;
    }

    /// <summary>Attributes: a format, a kind and a 16-bit value or the size of what follows; those read here are pairs of a symbol and a number.</summary>
    private static void ReadInfo(ReadOnlySpan<byte> info, string[] symbols, Dictionary<string, int> registers, Dictionary<string, int> stack)
    {
        for (int at = 0; at + 4 <= info.Length;)
        {
            byte format = info[at], kind = info[at + 1];
            int size = format == FormatSized ? BinaryPrimitives.ReadUInt16LittleEndian(info[(at + 2)..]) : 0;
            if (kind is RegisterCount or FrameSize && size >= 8)
                (kind == RegisterCount ? registers : stack)[symbols[BinaryPrimitives.ReadInt32LittleEndian(info[(at + 4)..])]] = BinaryPrimitives.ReadInt32LittleEndian(info[(at + 8)..]);
            at += 4 + size;
        }
    }

    private static string Text(ReadOnlySpan<byte> elf, int at)
    {
        var rest = elf[at..];
        return Encoding.ASCII.GetString(rest[..rest.IndexOf((byte)0)]);
    }
}
