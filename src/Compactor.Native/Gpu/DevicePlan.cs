using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>What the backend makes of a <see cref="LayerPlan"/> once, when it is prepared or first used: tables in device memory, launch sizes, and the workspace its operations take.</summary>
internal sealed class DevicePlan : IDisposable
{
    private readonly int _offsets, _sequenceOffsets, _attentionStarts, _leverageStarts, _partStarts, _weights, _ones, _headDim;

    public DevicePlan(GpuBackend backend, LayerPlan plan)
    {
        var (shape, options) = (plan.Shape, plan.Options);
        (SkipFirst, SkipLast) = options.ScoreProtected ? (0, 0) : (options.ProtectFirst, options.ProtectLast);
        int[] offsets = [.. shape.CuSeqlens];
        _offsets = Tables.Add(offsets);
        _sequenceOffsets = shape.IsRagged ? Tables.Add([.. offsets.Where((_, i) => i % shape.KvHeads == 0)]) : _offsets;
        _leverageStarts = Tables.Add(ChunkStarts(plan, options.LeverageChunk, out int leverageChunks));
        LeverageSegments = (long)leverageChunks * HeadsOfRow(shape);
        _partStarts = Tables.Add(PartStarts(plan, out int longest, out int parts));
        (LeverageChunkSize, LeverageParts) = (longest, (long)parts * HeadsOfRow(shape));
        Leverage = new FuseTerm(Tables, plan, options.LeverageScope, options.LeverageChunk);
        if (!shape.IsRagged)
        {
            _attentionStarts = Tables.Add(ChunkStarts(plan, options.AttentionChunk, out int attentionChunks));
            AttentionChunks = attentionChunks;
            Attention = new FuseTerm(Tables, plan, options.AttentionScope, options.AttentionChunk);
        }
        double[] weights = new double[shape.Sequences], ones = new double[shape.Sequences];
        Array.Fill(ones, 1);
        for (int b = 0; b < weights.Length; b++)
            weights[b] = plan.LeverageWeightOf(b);
        (_weights, _ones) = (Tables.Add(weights), Tables.Add(ones));
        Segments = options.SelectionScope switch
        {
            SelectionScope.Sequence => new PairSegments(Tables, shape, shape.KvHeads, false, (b, _) => plan.KeptPairsOf(b)),
            SelectionScope.Head => new PairSegments(Tables, shape, shape.KvHeads, true, (b, h) => plan.KeptTokensOf(b, h)),
            _ => new PairSegments(Tables, shape, 1, false, (b, _) => plan.KeptPairsOf(b) / shape.KvHeads),
        };
        Whole = options.SelectionScope == SelectionScope.Token ? new PairSegments(Tables, shape, shape.KvHeads, false, (_, _) => 0) : Segments;
        if (options.SelectionScope == SelectionScope.Sequence && options.MinTokensPerHead > 0)
            Raised = new PairSegments(Tables, shape, shape.KvHeads, true, (b, h) => Math.Min(shape.LengthOf(b, h), options.MinTokensPerHead));
        Tables.Upload(backend);
        _headDim = shape.HeadDim;
        bool weighted = Attention is not null && options.WeightByValueNorm;
        FuseWorkspace = new(Leverage.WorkspaceBytes, Attention?.WorkspaceBytes ?? 0, weighted ? sizeof(float) * (long)shape.Pairs : 0);
        SelectWorkspace = new(Math.Max(Segments.CountBytes, Raised?.CountBytes ?? 0), Math.Max(Segments.TieBytes, Raised?.TieBytes ?? 0),
            options.SelectionScope == SelectionScope.Token ? sizeof(float) * (long)shape.Tokens : Raised is not null ? sizeof(uint) * (long)shape.Pairs : 0);
        int segments = Math.Max(Segments.Count, Raised?.Count ?? 0);
        Counters = new(Math.Max(Segments.HistogramBytes, Raised?.HistogramBytes ?? 0), sizeof(uint) * (long)segments, sizeof(uint) * (long)Leverage.Scopes, sizeof(uint) * (long)(Attention?.Scopes ?? 0));
    }

    public DeviceTables Tables { get; } = new();

    /// <summary>i32 offsets of the sequences, or of their heads where ragged.</summary>
    public ulong CuSeqlens => Tables.Address(_offsets);

    /// <summary>i32 [B + 1] offsets of the sequences: of their first head where ragged.</summary>
    public ulong SequenceOffsets => Tables.Address(_sequenceOffsets);

    /// <summary>i32 [B + 1], as chunks.cuh says.</summary>
    public ulong AttentionChunkStarts => Tables.Address(_attentionStarts);

    public int AttentionChunks { get; }

    /// <summary>i32 [B + 1], or [B·Hkv + 1] where ragged.</summary>
    public ulong LeverageChunkStarts => Tables.Address(_leverageStarts);

    /// <summary>(leverage chunk, head) pairs.</summary>
    public long LeverageSegments { get; }

    /// <summary>Parts of leverage chunks before each sequence, as chunks.cuh says.</summary>
    public ulong LeveragePartStarts => Tables.Address(_partStarts);

    /// <summary>Parts of all leverage chunks and heads.</summary>
    public long LeverageParts { get; }

    /// <summary>Tokens of a full leverage chunk; of the longest sequence, where a chunk is a whole sequence.</summary>
    public int LeverageChunkSize { get; }

    /// <summary>Tokens that are not scored, at both ends of a sequence that has more.</summary>
    public int SkipFirst { get; }

    public int SkipLast { get; }

    /// <summary>Scopes of the leverage scores' statistics.</summary>
    public FuseTerm Leverage { get; }

    /// <summary>Scopes of the attention scores' statistics; null where ragged.</summary>
    public FuseTerm? Attention { get; }

    /// <summary>f64 [B] weights of leverage beside attention, or alone.</summary>
    public ulong Weights(bool alone) => Tables.Address(alone ? _ones : _weights);

    /// <summary>What competes in selection.</summary>
    public PairSegments Segments { get; }

    /// <summary>A cut over the pairs of all heads: the same, unless selection sums them.</summary>
    public PairSegments Whole { get; }

    /// <summary>What competes for each head's minimum; null without one.</summary>
    public PairSegments? Raised { get; }

    /// <summary>Whether fusing leaves the first digit of the threshold that <see cref="Segments"/> select by: they compete by the fused scores themselves, and nothing comes before.</summary>
    public bool FuseTakesDigits => Whole == Segments && Raised is null && Segments.Count > 0;

    /// <summary>Centers, partial Gram matrices and factors of leverage in two reads.</summary>
    public WorkspaceLayout LeverageWorkspace(int sketchDim) => new(LeverageSegments * _headDim * sizeof(float),
        LeverageParts * LeverageLaunch.PartialElements(sketchDim) * sizeof(float), LeverageSegments * LeverageLaunch.FactorBytes(sketchDim));

    /// <summary>Statistics of leverage and of attention scores, and norms of values.</summary>
    public WorkspaceLayout FuseWorkspace { get; }

    /// <summary>Counts of tiles, and the sums or keys that selection derives from scores.</summary>
    public WorkspaceLayout SelectWorkspace { get; }

    /// <summary>Zero before and after: histograms and counters of segments, counters of the scopes of leverage and of attention scores.</summary>
    public WorkspaceLayout Counters { get; }

    public void Dispose() => Tables.Free();

    /// <summary>Heads that share an entry of the offsets: ragged heads have entries of their own.</summary>
    private static int HeadsOfRow(LayerShape shape) => shape.IsRagged ? 1 : shape.KvHeads;

    private static int[] ChunkStarts(LayerPlan plan, int size, out int chunks)
    {
        var starts = new int[plan.Shape.CuSeqlens.Count];
        for (int row = 0; row + 1 < starts.Length; row++)
            starts[row + 1] = starts[row] + (size == 0 ? Math.Min(1, Scored(plan, row)) : (Scored(plan, row) + size - 1) / size);
        chunks = starts[^1];
        return starts;
    }

    private static int[] PartStarts(LayerPlan plan, out int size, out int parts)
    {
        var starts = new int[plan.Shape.CuSeqlens.Count];
        size = plan.Options.LeverageChunk;
        for (int row = 0; row + 1 < starts.Length && plan.Options.LeverageChunk == 0; row++)
            size = Math.Max(size, Scored(plan, row));
        size = Math.Max(1, size);
        for (int row = 0; row + 1 < starts.Length; row++)
        {
            int scored = Scored(plan, row);
            starts[row + 1] = checked(starts[row] + scored / size * LeverageLaunch.Parts(size) + LeverageLaunch.Parts(scored % size));
        }
        parts = starts[^1];
        return starts;
    }

    /// <summary>Scored tokens of a sequence, or of a head where ragged.</summary>
    private static int Scored(LayerPlan plan, int row)
    {
        var (first, end) = plan.Shape.IsRagged ? plan.ScoredTokens(row / plan.Shape.KvHeads, row % plan.Shape.KvHeads) : plan.ScoredTokens(row);
        return end - first;
    }
}
