using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>Compresses every layer of a dump, measures what that does to attention outputs, and saves the result.</summary>
internal sealed class FileCompression(KvDump dump, CompressionSettings settings, CpuBackend backend) : IDisposable
{
    private const int OwnProbes = 16;

    private readonly List<(KvDumpLayer Layer, LayerSelection Selection, LayerErrors? Errors)> _layers = [];
    private readonly List<string> _notes = [];
    private readonly CompressionOptions _options =
        dump.Phi is { } phi ? settings.Options with { SketchDimension = phi.Columns } : settings.Options;

    /// <summary>Compresses the layers, and saves the result when <paramref name="output"/> says where.</summary>
    /// <param name="output">A safetensors file, or null.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    /// <exception cref="CompactorException">A layer cannot be compressed, or the result not be written; nothing is written then.</exception>
    public CompressionReport Run(string? output, Action<double> progress)
    {
        foreach (var layer in dump.Layers)
        {
            FiniteCheck.Require(dump, layer);
            Compress(layer);
            progress((double)_layers.Count / dump.Layers.Count);
        }
        if (output is not null)
            CompressedFile.Save(output, dump, settings with { Options = _options }, [.. _layers.Select(l => (l.Layer, l.Selection))]);
        else
            foreach (var (layer, selection, _) in _layers)
            {
                selection.Compact(layer.Inputs.Key).Dispose();
                selection.Compact(layer.Inputs.Value).Dispose();
            }
        return new CompressionReport(settings with { Options = _options }, [.. _layers.Select(l => Report(l.Layer, l.Selection, l.Errors))],
            Probes(dump.Layers), _notes, backend.Description);
    }

    private void Compress(KvDumpLayer layer)
    {
        var plan = new LayerPlan(layer.Shape, _options, settings.Budget.Of(dump.Layers.Count, layer.Shape, _options));
        var inputs = layer.Inputs;
        Sketch? sketch = null;
        if (!plan.KeepsEverything)
        {
            if (inputs.KeyPreRope is null)
                inputs = inputs with { Rotary = Rotary(layer) };
            else if (settings.RopeTheta is not null)
                Note("The file has key_pre_rope; --rope-theta is not used.");
            if (inputs.Query is null)
                Note("The file has no queries: tokens are scored by leverage alone.");
            if (dump.Phi is { } phi)
            {
                sketch = Sketch.FromValues(phi.Values, layer.Shape, phi.Columns);
                Note($"The file's phi ({phi.Columns} columns) is used; no sketch is drawn.");
            }
        }
        for (int b = 0; b < layer.Shape.Sequences; b++)
            if (plan.RequestedPairsOf(b) < plan.KeptPairsOf(b))
                Note($"Sequence {b}: the budget of {plan.RequestedPairsOf(b)} (token, head) pairs a layer is less than what is always kept; raised to {plan.KeptPairsOf(b)}.");

        var selection = LayerCompressor.Select(backend, plan, inputs, SelectionPolicy.Compactor, sketch);
        _layers.Add((layer, selection, null));
        _layers[^1] = (layer, selection, Errors(layer, selection));
    }

    private RotaryEmbedding Rotary(KvDumpLayer layer)
    {
        if (settings.RopeTheta is { } theta)
        {
            Note($"The file has no key_pre_rope: the rotation of its keys is undone with --rope-theta {theta}.");
            return RotaryEmbedding.FromTheta(theta, settings.RotaryDim ?? layer.Shape.HeadDim, settings.RotaryStyle);
        }
        if (dump.CosSin is { } tables)
        {
            Note("The file has no key_pre_rope: the rotation of its keys is undone with its cos and sin.");
            return RotaryEmbedding.FromTables(tables.Cos, tables.Sin, tables.RotaryDim, settings.RotaryStyle);
        }
        string hint = dump.File.Metadata.TryGetValue("rope_theta", out string? stated) ? $" (the file's metadata says {stated})" : "";
        throw new CompactorException(CompactorStatus.InvalidArgument,
            $"Layer {layer.Index} has no key_pre_rope, and the file no cos and sin: leverage needs keys from before RoPE. Give the model's RoPE base with --rope-theta{hint}.");
    }

    private LayerErrors? Errors(KvDumpLayer layer, LayerSelection selection)
    {
        var inputs = layer.Inputs;
        OutputError error;
        if (layer.ProbeQuery is { } probes)
        {
            var shape = layer.Shape.QueryHeads == probes.Heads
                ? layer.Shape
                : new LayerShape(layer.Shape.CuSeqlens, probes.Heads, layer.Shape.KvHeads, layer.Shape.HeadDim, layer.Shape.ElementType) { Layer = layer.Index };
            error = OutputError.AfterContext(shape, inputs.Key, inputs.Value, probes, settings.Threads);
        }
        else if (inputs.Query is { } query)
            error = OutputError.OfLastTokens(layer.Shape, inputs.Key, inputs.Value, query, OwnProbes, settings.Threads);
        else
            return null;

        var counts = selection.Plan.WithoutProtection();
        using var random = LayerCompressor.Select(backend, counts, inputs, SelectionPolicy.Random(_options.Seed));
        using var recent = LayerCompressor.Select(backend, counts, inputs, SelectionPolicy.Recent);
        return error.Of(Kept(selection), Kept(random), Kept(recent)) is [var compressed, var ofRandom, var ofRecent]
            ? new LayerErrors(compressed, ofRandom, ofRecent)
            : null;
    }

    private static (ReadOnlyMemory<int>, ReadOnlyMemory<int>) Kept(LayerSelection selection) =>
        (selection.KeptIndices.View.AsSpan().ToArray(), selection.KeptOffsets.View.AsSpan().ToArray());

    private static string? Probes(IReadOnlyList<KvDumpLayer> layers) =>
        layers.Any(l => l.ProbeQuery is not null) ? $"{layers.First(l => l.ProbeQuery is not null).ProbeQuery!.Value.Tokens} probe queries after the context"
        : layers.Any(l => l.Inputs.Query is not null) ? $"queries of each sequence's last {OwnProbes} tokens"
        : null;

    private static LayerReport Report(KvDumpLayer layer, LayerSelection selection, LayerErrors? errors)
    {
        var offsets = selection.KeptOffsets.View.AsSpan();
        var lengths = new int[offsets.Length - 1];
        for (int i = 0; i < lengths.Length; i++)
            lengths[i] = offsets[i + 1] - offsets[i];
        return new LayerReport(CompressedFile.Prefix(layer).TrimEnd('.'), selection.Plan, lengths, selection.Times, errors);
    }

    private void Note(string note)
    {
        if (!_notes.Contains(note))
            _notes.Add(note);
    }

    public void Dispose()
    {
        foreach (var (_, selection, _) in _layers)
            selection.Dispose();
    }
}
