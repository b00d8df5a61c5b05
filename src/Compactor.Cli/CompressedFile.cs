using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>The result of a compression as safetensors: scores, kept indices and survivors of every layer.</summary>
internal static class CompressedFile
{
    private const int PieceBytes = 1 << 26;

    /// <summary>What the names of a layer's tensors begin with: <c>layers.3.</c>, or nothing.</summary>
    public static string Prefix(KvDumpLayer layer) => layer.Tensors["key"].Name[..^"key".Length];

    /// <exception cref="CompactorException">The file cannot be written; what was there before is unchanged.</exception>
    /// <exception cref="OperationCanceledException">A signal asked to stop; what was there before is unchanged.</exception>
    public static void Save(string path, KvDump dump, CompressionSettings settings, IReadOnlyList<(KvDumpLayer Layer, LayerSelection Selection)> layers)
    {
        var writer = new SafetensorsWriter();
        writer.AddMetadata("tool", $"compactor {CompressionSettings.ToolVersion}");
        writer.AddMetadata("preset", settings.Preset);
        writer.AddMetadata("budget", settings.Budget.ToString());
        foreach (var (name, value) in settings.Describe(settings.Options))
            writer.AddMetadata(name, value);
        writer.Add("cu_seqlens", [dump.CuSeqlens.Count], [.. dump.CuSeqlens]);
        foreach (var (layer, selection) in layers)
        {
            string prefix = Prefix(layer);
            var shape = layer.Shape;
            foreach (var (name, scores) in (ReadOnlySpan<(string, BackendBuffer<float>?)>)
                [("leverage", selection.Leverage), ("attention", selection.Attention), ("scores", selection.Scores)])
                if (scores is { View: var view })
                    writer.Add(prefix + name, SafetensorsType.F32, [shape.Tokens, shape.KvHeads], view.Address, view.Length * sizeof(float));
            var (indices, offsets) = (selection.KeptIndices.View, selection.KeptOffsets.View);
            writer.Add(prefix + "kept_indices", SafetensorsType.I32, [indices.Length], indices.Address, indices.Length * sizeof(int));
            writer.Add(prefix + "kept_offsets", SafetensorsType.I32, [offsets.Length], offsets.Address, offsets.Length * sizeof(int));
            AddSurvivors(prefix + "key", layer.Inputs.Key);
            AddSurvivors(prefix + "value", layer.Inputs.Value);

            // Gathered while saving, one tensor at a time.
            void AddSurvivors(string name, TensorView source) =>
                writer.Add(name, source.ElementType.ToSafetensorsType(), [selection.Plan.KeptPairs, source.Dim], write => Gather(selection, source, write));
        }
        using var interruption = new Interruption();
        writer.Save(path, interruption.Token);
    }

    private static unsafe void Gather(LayerSelection selection, TensorView source, SafetensorsPieceWriter write)
    {
        using var survivors = selection.Compact(source);
        var (address, length) = survivors.View;
        for (long done = 0; done < length; done += PieceBytes)
            write(new ReadOnlySpan<byte>((byte*)address + done, (int)Math.Min(PieceBytes, length - done)));
    }
}
