using Compactor.Cli.Reporting;
using Compactor.Native;
using Compactor.Native.Cuda;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>Compresses a file and tells the user: notes on standard error, figures on standard output, pictures in a folder.</summary>
internal static class CompressionSession
{
    // Of the time a report takes, roughly what goes into measuring; the rest is drawing.
    private const double MeasuringShare = 0.8;

    /// <param name="input">A dump of a KV cache.</param>
    /// <param name="layout">Order of its dimensions.</param>
    /// <param name="settings">How to compress it.</param>
    /// <param name="output">Where to write the result; null for nowhere.</param>
    /// <param name="folder">Where to write the report; null for nowhere.</param>
    /// <param name="json">Whether the figures are a JSON document instead of a table.</param>
    /// <exception cref="CompactorException">The file cannot be read or compressed, or the result or report not be written.</exception>
    /// <exception cref="OperationCanceledException">A signal asked to stop; nothing was written.</exception>
    public static void Execute(string input, KvLayout layout, CompressionSettings settings, string? output, string? folder, bool json)
    {
        var target = folder is null ? null : new ReportFolder(folder);
        if (output is not null)
            OutputFile.CheckOutside(output, target);
        using var dump = KvDump.Open(input, layout);
        using var backend = KvBackend.Open(settings.Backend, out string? fallback, new CudaOptions { Announce = Terminal.Note }, settings.Threads);
        if (fallback is not null)
            Terminal.Note($"the cpu computes: {fallback}");
        using var compression = new FileCompression(dump, settings, backend);
        var report = LazyProgress.Run($"Compressing {Path.GetFileName(input)}", progress =>
        {
            double measuring = target is null ? 1 : MeasuringShare;
            var report = compression.Run(withCurves: target is not null, share => progress(measuring * share));
            var files = target is null ? [] : Report.Create(report, compression.Layers, Path.GetFileName(input),
                JsonDocumentWriter.Bytes(writer => report.WriteJson(writer, input, output, folder)), share => progress(measuring + (1 - measuring) * share));
            Write(compression, output, target, files);
            return report;
        });
        foreach (string note in report.Notes)
            Terminal.Note(note);
        if (json)
        {
            JsonDocumentWriter.Write(writer => report.WriteJson(writer, input, output, folder));
            return;
        }
        report.Print(Terminal.Output());
        if (folder is not null)
            Console.WriteLine($"Report: open {Path.Combine(folder, ReportFolder.Page)} in a browser; the pictures are beside it.");
    }

    /// <summary>Writes the result and the report. Until here a signal ends the process at once, with nothing written; from here it is heeded where it leaves nothing half written.</summary>
    private static void Write(FileCompression compression, string? output, ReportFolder? target, IEnumerable<(string Name, byte[] Content)> files)
    {
        using var interruption = new Interruption();
        using var staged = target?.Stage(files, interruption.Token);
        if (output is not null)
            compression.Save(output, interruption.Token);
        staged?.Publish();
    }
}
