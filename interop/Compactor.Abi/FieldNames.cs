using System.Text;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Abi;

/// <summary>Properties of the library's that are fields of the interface: its messages name the first, and a host has set the second.</summary>
internal static class FieldNames
{
    /// <summary>Names that stand anywhere in a message.</summary>
    public static IReadOnlyDictionary<string, string> Anywhere { get; } = Fields("options.",
        nameof(CompressionOptions.SketchDimension), nameof(CompressionOptions.SketchSharing), nameof(CompressionOptions.CenterKeys), nameof(CompressionOptions.LeverageChunk),
        nameof(CompressionOptions.LeverageScope), nameof(CompressionOptions.Epsilon), nameof(CompressionOptions.AttentionChunk), nameof(CompressionOptions.GroupReduction),
        nameof(CompressionOptions.AttentionScale), nameof(CompressionOptions.WeightByValueNorm), nameof(CompressionOptions.PoolWidth), nameof(CompressionOptions.AttentionScope),
        nameof(CompressionOptions.UnbiasedStandardDeviation), nameof(CompressionOptions.StandardDeviationFloor), nameof(CompressionOptions.LeverageWeight),
        nameof(CompressionOptions.ProtectFirst), nameof(CompressionOptions.ProtectLast), nameof(CompressionOptions.ScoreProtected), nameof(CompressionOptions.ProtectedBudget),
        nameof(CompressionOptions.SelectionScope), nameof(CompressionOptions.RetentionCount), nameof(CompressionOptions.MinTokensPerHead));

    /// <summary>Names that are words too, or of several structs: fields only where the message begins with them.</summary>
    public static IReadOnlyDictionary<string, string> First { get; } = new Dictionary<string, string>(
        Fields("options.", nameof(PagedCacheOptions.Layers), nameof(PagedCacheOptions.KvHeads), nameof(PagedCacheOptions.HeadDim), nameof(PagedCacheOptions.ElementType),
            nameof(PagedCacheOptions.Blocks), nameof(PagedCacheOptions.BlockSize), nameof(DecodeOptions.Scale), nameof(DecodeOptions.SoftCap))
        .Concat(Fields("shape.", nameof(LayerShape.Layer), nameof(LayerShape.FirstHead))));

    /// <summary>The message with the fields' names.</summary>
    public static string In(string message)
    {
        var text = new StringBuilder(message.Length);
        int at = 0;
        while (at < message.Length)
        {
            int end = at;
            while (end < message.Length && (char.IsAsciiLetterOrDigit(message[end]) || message[end] is '_' or '/'))
                end++;
            string word = message[at..end];
            bool first = at == 0 && message.AsSpan(end).StartsWith(" is ");
            text.Append(Anywhere.GetValueOrDefault(word) ?? (first ? First.GetValueOrDefault(word) : null) ?? word);
            if (end < message.Length)
                text.Append(message[end]);
            at = end + 1;
        }
        return text.ToString();
    }

    private static Dictionary<string, string> Fields(string prefix, params string[] names) => names.ToDictionary(name => name, name => prefix + Snake(name));

    private static string Snake(string name) => string.Concat(name.Select((c, i) => char.IsAsciiLetterUpper(c) ? (i == 0 ? "" : "_") + char.ToLowerInvariant(c) : $"{c}"));
}
