using System.Reflection;

namespace Compactor.Native.Gpu;

/// <summary>The files of <c>cuda/</c>, which this assembly carries.</summary>
internal static class KernelSources
{
    private const string Prefix = "cuda/";

    private static readonly Assembly s_assembly = typeof(KernelSources).Assembly;

    /// <summary>Headers by name, in ordinal order.</summary>
    public static IReadOnlyDictionary<string, string> Headers { get; } = Read(".cuh");

    /// <summary>Sources by name, in ordinal order.</summary>
    public static IReadOnlyDictionary<string, string> Sources { get; } = Read(".cu");

    private static SortedDictionary<string, string> Read(string extension)
    {
        var files = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach (string resource in s_assembly.GetManifestResourceNames())
            if (resource.StartsWith(Prefix, StringComparison.Ordinal) && resource.EndsWith(extension, StringComparison.Ordinal))
            {
                using var reader = new StreamReader(s_assembly.GetManifestResourceStream(resource)!);
                files.Add(resource[Prefix.Length..], reader.ReadToEnd());
            }
        return files;
    }
}
