using Compactor.Host;
using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>What <c>generate</c> is asked for.</summary>
internal sealed record GenerationRequest
{
    /// <summary>Folder of the model that comes with the tool.</summary>
    public static string BundledModel { get; } = Path.Combine(AppContext.BaseDirectory, "Models", "needle");

    /// <summary>Folder of the checkpoint.</summary>
    public required string Model { get; init; }

    /// <summary>File of the prompt.</summary>
    public required string Prompt { get; init; }

    /// <summary>Questions; the prompt is continued when there is none.</summary>
    public required IReadOnlyList<string> Questions { get; init; }

    /// <summary>Share of the tokens to keep; null when <see cref="Quality"/> decides.</summary>
    public required double? Retention { get; init; }

    /// <summary>Quality to keep; null when <see cref="Retention"/> is given.</summary>
    public required double? Quality { get; init; }

    /// <summary>File of the calibration; null for that in the model's folder.</summary>
    public required string? Calibration { get; init; }

    /// <summary>Options of the method.</summary>
    public required CompressionOptions Options { get; init; }

    /// <summary>The method as a calibration states it.</summary>
    public required string Method { get; init; }

    /// <summary>How tokens are chosen.</summary>
    public required GenerationOptions Generation { get; init; }

    /// <summary>Text that ends an answer; null for none.</summary>
    public required string? Stop { get; init; }

    /// <summary>Threads; 0 for all cores.</summary>
    public required int Threads { get; init; }
}
