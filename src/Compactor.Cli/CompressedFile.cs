using Compactor.Native;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>The result of a compression as safetensors: scores, kept indices and survivors of every layer.</summary>
internal static class CompressedFile
{
    /// <summary>What the names of a layer's tensors begin with: <c>layers.3.</c>, or nothing.</summary>
    public static string Prefix(KvDumpLayer layer) => layer.Tensors["key"].Name[..^"key".Length];

    /// <exception cref="CompactorException">The file cannot be written; what was there before is unchanged.</exception>
    /// <exception cref="OperationCanceledException">Cancelled; what was there before is unchanged.</exception>
    public static void Save(string path, KvDump dump, CompressionSettings settings, IReadOnlyList<CompressedLayer> layers, PagedDump paged, CancellationToken cancellation)
    {
        var writer = new SafetensorsWriter();
        writer.AddMetadata("tool", $"compactor {CompressionSettings.ToolVersion}");
        writer.AddMetadata("preset", settings.Preset);
        writer.AddMetadata("budget", settings.Budget.ToString());
        foreach (var (name, value) in settings.Describe(settings.Options))
            writer.AddMetadata(name, value);
        writer.Add("cu_seqlens", [dump.CuSeqlens.Count], [.. dump.CuSeqlens]);
        for (int i = 0; i < layers.Count; i++)
        {
            var (index, layer, selection) = (i, layers[i].Layer, layers[i].Selection);
            string prefix = Prefix(layer);
            var shape = layer.Shape;
            foreach (var (name, scores) in (ReadOnlySpan<(string, float[]?)>)
                [("leverage", selection.Leverage), ("attention", selection.Attention), ("scores", selection.Scores)])
                if (scores is not null)
                    writer.Add(prefix + name, [shape.Tokens, shape.KvHeads], scores);
            writer.Add(prefix + "kept_indices", [selection.KeptIndices.Length], selection.KeptIndices);
            writer.Add(prefix + "kept_offsets", [selection.KeptOffsets.Length], selection.KeptOffsets);
            foreach (string name in (string[])["key", "value"])
                writer.Add(prefix + name, shape.ElementType.ToSafetensorsType(), [selection.Plan.KeptPairs, shape.HeadDim],
                    write => paged.WriteSurvivors(index, keys: name == "key", write));
        }
        writer.Save(path, cancellation);
    }
}
