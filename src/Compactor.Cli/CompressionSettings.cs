using System.Reflection;
using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>How a file is compressed.</summary>
internal sealed record CompressionSettings
{
    /// <summary>Tokens of a block unless told otherwise.</summary>
    public const int DefaultBlockSize = 128;

    /// <summary>Version of this tool, without build metadata.</summary>
    public static string ToolVersion { get; } =
        typeof(CompressionSettings).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion.Split('+')[0];

    /// <summary>Name of the preset that <see cref="Options"/> started from.</summary>
    public required string Preset { get; init; }

    /// <summary>Options of the method.</summary>
    public required CompressionOptions Options { get; init; }

    /// <summary>Options as command-line names and values.</summary>
    public required Func<CompressionOptions, IEnumerable<(string Name, string Value)>> Describe { get; init; }

    /// <summary>How much is kept.</summary>
    public required FileBudget Budget { get; init; }

    /// <summary>RoPE base of the keys' rotation as the command line states it; null when it does not.</summary>
    public double? RopeTheta { get; init; }

    /// <summary>How RoPE pairs dimensions.</summary>
    public RotaryStyle RotaryStyle { get; init; } = RotaryStyle.HalfRotation;

    /// <summary>Rotated dimensions; null for all of a head.</summary>
    public int? RotaryDim { get; init; }

    /// <summary>Tokens of a block of the paged cache.</summary>
    public int BlockSize { get; init; } = DefaultBlockSize;

    /// <summary>What computes.</summary>
    public BackendChoice Backend { get; init; } = BackendChoice.Cpu;

    /// <summary>Threads; 0 for all cores.</summary>
    public int Threads { get; init; }
}
