using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>Compresses a file and tells the user: notes on standard error, the report on standard output.</summary>
internal static class CompressionSession
{
    /// <param name="input">A dump of a KV cache.</param>
    /// <param name="layout">Order of its dimensions.</param>
    /// <param name="settings">How to compress it.</param>
    /// <param name="output">Where to write the result; null for nowhere.</param>
    /// <param name="json">Whether the report is a JSON document instead of a table.</param>
    /// <exception cref="CompactorException">The file cannot be read or compressed, or the result not written.</exception>
    public static void Execute(string input, KvLayout layout, CompressionSettings settings, string? output, bool json)
    {
        using var dump = KvDump.Open(input, layout);
        using var backend = new CpuBackend(settings.Threads);
        using var compression = new FileCompression(dump, settings, backend);
        var report = LazyProgress.Run($"Compressing {Path.GetFileName(input)}", progress => compression.Run(output, progress));
        foreach (string note in report.Notes)
            Console.Error.WriteLine($"compactor: note: {note}");
        if (json)
            JsonDocumentWriter.Write(writer => report.WriteJson(writer, input, output));
        else
            report.Print(Terminal.Output());
    }
}
