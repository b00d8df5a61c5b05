using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>A compiled module: cubin or PTX, and where it comes from.</summary>
/// <param name="Module">What was compiled, as <see cref="KernelVariant.Module"/>.</param>
/// <param name="Target">What for.</param>
/// <param name="Nvrtc">The compiler's version.</param>
/// <param name="Image">Cubin, or PTX with its terminating zero.</param>
internal sealed record KernelCode(string Module, CompileTarget Target, Version Nvrtc, byte[] Image)
{
    private const string Magic = "COMPACTOR-KERNEL 1";

    /// <summary>Options every module is compiled with, before its macros.</summary>
    private static readonly string[] s_options = ["--std=c++17", "--device-as-default-execution-space"];

    /// <summary>Options of a variant's module.</summary>
    public static string[] Options(KernelVariant variant) => [.. s_options, .. variant.Macros.Select(m => $"-D{m.Name}={m.Value}")];

    /// <summary>What identifies code in a cache: a hash of sources, options and target. The compiler's version is not part of it.</summary>
    public static string Key(KernelVariant variant, CompileTarget target)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Append(Magic);
        Append(target.Name);
        foreach (string option in Options(variant))
            Append(option);
        Append(variant.Source);
        Append(KernelSources.Sources[variant.Source]);
        foreach (var (name, text) in KernelSources.Headers)
        {
            Append(name);
            Append(text);
        }
        return Convert.ToHexStringLower(hash.GetHashAndReset());

        void Append(string text)
        {
            hash.AppendData(Encoding.UTF8.GetBytes(text));
            hash.AppendData([0]);
        }
    }

    /// <summary>As a file: lines of text that say what it is, an empty line, the image.</summary>
    public byte[] Write()
    {
        string header = $"{Magic}\nmodule {Module}\ntarget {Target.Name}\nnvrtc {Nvrtc}\nbytes {Image.Length}\nsha256 {Convert.ToHexStringLower(SHA256.HashData(Image))}\n\n";
        return [.. Encoding.ASCII.GetBytes(header), .. Image];
    }

    /// <summary>Reads what <see cref="Write"/> wrote.</summary>
    /// <exception cref="InvalidDataException">It is truncated or changed; the message says how.</exception>
    public static KernelCode Read(byte[] file)
    {
        int end = file.AsSpan().IndexOf("\n\n"u8);
        string[] lines = end < 0 ? [] : Encoding.ASCII.GetString(file, 0, end).Split('\n');
        string[] names = ["module", "target", "nvrtc", "bytes", "sha256"];
        if (lines.Length != 1 + names.Length || lines[0] != Magic)
            throw new InvalidDataException($"it does not start with the lines of {Magic}");
        string[] values = [.. names.Select((name, i) => lines[i + 1].StartsWith(name + ' ', StringComparison.Ordinal) ? lines[i + 1][(name.Length + 1)..]
            : throw new InvalidDataException($"line {i + 2} does not give its {name}"))];
        byte[] image = file[(end + 2)..];
        if (values[3] != image.Length.ToString(CultureInfo.InvariantCulture))
            throw new InvalidDataException($"it holds {image.Length} bytes of code instead of {values[3]}");
        if (values[4] != Convert.ToHexStringLower(SHA256.HashData(image)))
            throw new InvalidDataException("its code does not have the SHA-256 it states");
        if (!CompileTarget.TryParse(values[1], out var target) || !Version.TryParse(values[2], out var nvrtc))
            throw new InvalidDataException($"it is for '{values[1]}', made by '{values[2]}'");
        return new KernelCode(values[0], target, nvrtc, image);
    }
}
