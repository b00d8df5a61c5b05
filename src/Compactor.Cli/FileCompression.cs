using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;

namespace Compactor.Cli;

/// <summary>Compresses every layer of a dump in a paged cache, and measures what that does to attention outputs.</summary>
internal sealed class FileCompression : IDisposable
{
    private readonly KvDump _dump;
    private readonly CompressionSettings _settings;
    private readonly KvBackend _backend;
    private readonly CpuBackend _measuring;
    private readonly LayerPlan[] _plans;
    private readonly PagedDump _paged;
    private readonly List<CompressedLayer> _layers = [];
    private readonly List<LayerSelection> _selections = [];
    private readonly List<string> _notes = [];

    /// <exception cref="CompactorException">The budget does not fit a layer.</exception>
    public FileCompression(KvDump dump, CompressionSettings settings, KvBackend backend)
    {
        _dump = dump;
        _settings = settings with { Options = dump.Phi is { } phi ? settings.Options with { SketchDimension = phi.Columns } : settings.Options };
        _backend = backend;
        // Errors are measured on the CPU, where the baselines are.
        _measuring = backend as CpuBackend ?? new CpuBackend(settings.Threads);
        _plans = [.. dump.Layers.Select(layer => new LayerPlan(layer.Shape, _settings.Options, settings.Budget.Of(dump.Layers.Count, layer.Shape, _settings.Options)))];
        _paged = new PagedDump(backend, _plans, settings.BlockSize);
    }

    /// <summary>The layers compressed so far.</summary>
    public IReadOnlyList<CompressedLayer> Layers => _layers;

    /// <summary>Compresses the layers.</summary>
    /// <param name="withCurves">Whether to measure errors at other budgets too.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    /// <exception cref="CompactorException">A layer cannot be compressed.</exception>
    public CompressionReport Run(bool withCurves, Action<double> progress)
    {
        for (int i = 0; i < _plans.Length; i++)
        {
            FiniteCheck.Require(_dump, _dump.Layers[i]);
            int done = i;
            Compress(i, withCurves, share => progress((done + share) / _plans.Length));
            progress((i + 1.0) / _plans.Length);
        }
        return new CompressionReport(_settings, [.. _layers.Select(l => l.Report)], AttentionErrors.Probes(_dump.Layers), _notes, _backend.Description, _paged.Blocks);
    }

    /// <summary>Saves scores, kept indices and survivors.</summary>
    /// <exception cref="CompactorException">The file cannot be written; what was there before is unchanged.</exception>
    /// <exception cref="OperationCanceledException">Cancelled; what was there before is unchanged.</exception>
    public void Save(string output, CancellationToken cancellation) => CompressedFile.Save(output, _dump, _settings, _layers, _paged, cancellation);

    private void Compress(int index, bool withCurves, Action<double> progress)
    {
        var (layer, plan) = (_dump.Layers[index], _plans[index]);
        var inputs = layer.Inputs;
        Sketch? sketch = null;
        if (!plan.KeepsEverything)
        {
            if (inputs.KeyPreRope is null)
                inputs = inputs with { Rotary = Rotary(layer) };
            else if (_settings.RopeTheta is not null)
                Note("The file has key_pre_rope; --rope-theta is not used.");
            if (inputs.Query is null)
                Note("The file has no queries: tokens are scored by leverage alone.");
            if (_dump.Phi is { } phi)
            {
                sketch = Sketch.FromValues(phi.Values, layer.Shape, phi.Columns);
                Note($"The file's phi ({phi.Columns} columns) is used; no sketch is drawn.");
            }
        }
        for (int b = 0; b < layer.Shape.Sequences; b++)
            if (plan.RequestedPairsOf(b) < plan.KeptPairsOf(b))
                Note($"Sequence {b}: the budget of {plan.RequestedPairsOf(b)} (token, head) pairs a layer is less than what is always kept; raised to {plan.KeptPairsOf(b)}.");

        using var held = new BackendInputs(_backend, inputs);
        LayerSelection? selection = null;
        HostSelection? onHost = null;
        var blocks = _paged.Run(index, layer.Shape, held.Inputs, () =>
        {
            selection = LayerCompressor.Select(_backend, plan, held.Inputs, SelectionPolicy.Compactor, sketch);
            _selections.Add(selection);
            return (onHost = HostSelection.Of(_backend, selection), selection.Times);
        });
        var errors = AttentionErrors.For(_measuring, layer, _settings.Threads);
        var offsets = onHost!.KeptOffsets;
        _layers.Add(new CompressedLayer(layer, onHost, new LayerReport(
            CompressedFile.Prefix(layer).TrimEnd('.'), plan, [.. offsets.Zip(offsets.Skip(1), (start, end) => end - start)], blocks, selection!.Times,
            errors?.Of(onHost, inputs), withCurves && onHost.Scores is not null ? errors?.Curves(onHost, inputs, progress) : null)));
    }

    private RotaryEmbedding Rotary(KvDumpLayer layer)
    {
        if (_settings.RopeTheta is { } theta)
        {
            Note($"The file has no key_pre_rope: the rotation of its keys is undone with --rope-theta {theta}.");
            return RotaryEmbedding.FromTheta(theta, _settings.RotaryDim ?? layer.Shape.HeadDim, _settings.RotaryStyle);
        }
        if (_dump.CosSin is { } tables)
        {
            Note("The file has no key_pre_rope: the rotation of its keys is undone with its cos and sin.");
            return RotaryEmbedding.FromTables(tables.Cos, tables.Sin, tables.RotaryDim, _settings.RotaryStyle);
        }
        string hint = _dump.File.Metadata.TryGetValue("rope_theta", out string? stated) ? $" (the file's metadata says {stated})" : "";
        throw new CompactorException(CompactorStatus.InvalidArgument,
            $"Layer {layer.Index} has no key_pre_rope, and the file no cos and sin: leverage needs keys from before RoPE. Give the model's RoPE base with --rope-theta{hint}.");
    }

    private void Note(string note)
    {
        if (!_notes.Contains(note))
            _notes.Add(note);
    }

    public void Dispose()
    {
        _paged.Dispose();
        foreach (var selection in _selections)
            selection.Dispose();
        if (_measuring != _backend)
            _measuring.Dispose();
    }
}

/// <summary>A layer, what was decided about it, and the figures to tell.</summary>
internal sealed record CompressedLayer(KvDumpLayer Layer, HostSelection Selection, LayerReport Report);
