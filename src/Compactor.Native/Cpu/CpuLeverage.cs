using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>
/// Approximate leverage scores, <c>o_i = ||L⁻¹ x_i||²</c> with <c>X = (Kp - mean)·Phi</c> and <c>XᵀX + eps·I = L·Lᵀ</c>.
/// Keys are centred while loading, before anything is squared. X and the solve are float32 matrix tiles; the Gram matrix sums runs of 16 rows
/// in float32 and the runs in double, in order: its rounding counts with the square of X's condition, and runs of 128 cost 4e-5 of the scores
/// where D = k = 16. The factorisation is double. Flops a row: 2·D·k for X (twice when X is not kept), 2·k² for Gram, 2·k² for the solve.
/// A leverage chunk is one work item. A whole sequence is cut into at most 64 blocks that meet twice, for the mean and for the Gram matrix;
/// the cut depends on the sequence's length alone, so results do not depend on threads or on other sequences.
/// </summary>
internal static unsafe class CpuLeverage<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    private const int MaxBlocks = 64, BlockRows = 512, GramRun = 16;

    /// <summary>Rows converted at once: a multiple of the tile height.</summary>
    private const int LoadTile = 8 * MatrixTile<TLanes, TVector>.Rows;

    /// <summary>Most bytes of X kept between the two passes over a whole sequence; beyond, X is computed twice.</summary>
    private const long MaxKeptSketchBytes = 32L << 20;

    public static void Run(Workers workers, LayerPlan plan, TensorView keys, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage)
    {
        using var rotation = undo is null ? null : new InverseRotation(undo, plan.Shape, workers);
        var badKey = new NonFiniteInput(plan.Shape, undo is null ? "key_pre_rope" : "key");
        Run(new Call(workers, plan, new DenseRows<TLanes, TVector>(keys, plan.Shape, rotation), badKey, sketch, (float*)leverage.Address), plan, leverage);
    }

    public static void Run(Workers workers, LayerPlan plan, PagedSlots slots, PagedTables tables, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage)
    {
        using var rotation = undo is null ? null : new PositionRotation(undo, plan.Shape, slots, tables, workers);
        var badKey = new NonFiniteInput(plan.Shape, "the cache (slots count as tokens)");
        var perHead = plan.PerHead();
        Run(new Call(workers, perHead, new PagedRows<TLanes, TVector>(slots, tables, plan.Shape.KvHeads, rotation), badKey, sketch.PerHead(), (float*)leverage.Address), perHead, leverage);
    }

    private static void Run(Call call, LayerPlan plan, BufferView<float> leverage)
    {
        leverage.AsSpan().Clear();
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            var (first, end) = plan.ScoredTokens(b);
            if (end == first)
                continue;
            if (plan.Options.LeverageChunk > 0)
                call.Chunks(b, first, end);
            else
                call.WholeSequence(b, first, end);
        }
        call.ThrowIfAny();
    }

    private sealed class Call(Workers workers, LayerPlan plan, LeverageRows source, NonFiniteInput badKey, Sketch sketch, float* leverage)
    {
        private readonly Lock _lock = new();
        private readonly int _dim = plan.Shape.HeadDim, _k = sketch.Columns, _heads = plan.Shape.KvHeads;

        /// <summary>Columns of a tile and panel.</summary>
        private readonly int _width = MatrixTile<TLanes, TVector>.WidthFor(sketch.Columns);

        /// <summary>k rounded up to whole panels: the row stride of X, Gram sums and the solve.</summary>
        private readonly int _columns = MatrixTile<TLanes, TVector>.PaddedColumns(sketch.Columns, MatrixTile<TLanes, TVector>.WidthFor(sketch.Columns));

        private (int Sequence, int Head)? _failed;

        public void ThrowIfAny()
        {
            badKey.ThrowIfAny();
            if (_failed is var (sequence, head))
                throw new CompactorException(CompactorStatus.FactorizationFailed,
                    $"Layer {plan.Shape.Layer}: the Gram matrix of sequence {sequence}, head {head} has no Cholesky factor even with Epsilon {plan.Options.Epsilon} times 10^{GramFactor.MaxEscalations}; check the cache, since squares of its keys may overflow float32, or raise Epsilon.");
        }

        private long PanelFloats => (long)_dim * _columns;
        private long GramFloats => (long)MatrixTile<TLanes, TVector>.PaddedRows(_k) * _columns;

        /// <summary>X rows, with room for whole tiles and for a Gram tile that reads past the last column.</summary>
        private long SketchFloats(int rows) => ((long)MatrixTile<TLanes, TVector>.PaddedRows(rows) + 1) * _columns;

        public void Chunks(int b, int first, int end)
        {
            int chunk = plan.Options.LeverageChunk, chunks = (end - first + chunk - 1) / chunk;
            long floats = _dim + LoadTile * (long)(_dim + _columns) + PanelFloats + (long)_k * _columns + GramFloats + SketchFloats(chunk);
            long doubles = _dim + 2L * _k * _k;
            workers.Run(chunks * _heads, floats * sizeof(float) + doubles * sizeof(double), (item, scratch) =>
            {
                int head = item % _heads, token = first + item / _heads * chunk, rows = Math.Min(chunk, end - token);
                double* sum = (double*)scratch, gram = sum + _dim, inverse = gram + _k * _k;
                float* tile = (float*)(inverse + _k * _k), solved = tile + LoadTile * _dim, panels = solved + (long)LoadTile * _columns;
                float* solve = panels + PanelFloats, run = solve + (long)_k * _columns, mean = run + GramFloats, x = mean + _dim;
                PackSketch(sketch.Of(b, head), panels);
                new Span<double>(sum, _dim).Clear();
                if (plan.Options.CenterKeys)
                    AddRows(b, token, rows, head, tile, sum);
                Mean(sum, rows, mean);
                SketchRows(b, token, rows, head, mean, panels, tile, x);
                new Span<double>(gram, _k * _k).Clear();
                AddGram(x, rows, run, gram);
                if (Factor(b, head, gram, inverse, solve))
                    Score(x, rows, solve, solved, Output(b, token, head));
            });
        }

        public void WholeSequence(int b, int first, int end)
        {
            int length = end - first, blocks = Math.Clamp((length + BlockRows - 1) / BlockRows, 1, MaxBlocks);
            int blockRows = (length + blocks - 1) / blocks;
            blocks = (length + blockRows - 1) / blockRows;

            using var sums = workers.Rent((long)_heads * blocks * _dim * sizeof(double));
            using var means = workers.Rent((long)_heads * _dim * sizeof(float));
            using var grams = workers.Rent((long)_heads * blocks * _k * _k * sizeof(double));
            using var solves = workers.Rent((long)_heads * _k * _columns * sizeof(float));
            long xFloats = SketchFloats(blockRows);
            bool keep = blockRows <= BlockRows && xFloats * _heads * blocks * sizeof(float) <= MaxKeptSketchBytes;
            using var kept = workers.Rent(keep ? xFloats * _heads * blocks * sizeof(float) : 0);
            float* keptX = (float*)kept.Address;
            double* sum = (double*)sums.Address, gram = (double*)grams.Address;
            float* mean = (float*)means.Address, solve = (float*)solves.Address;
            long floats = LoadTile * (long)(_dim + _columns) + PanelFloats + GramFloats + SketchFloats(BlockRows);

            if (plan.Options.CenterKeys)
                workers.Run(_heads * blocks, floats * sizeof(float), (item, scratch) =>
                {
                    int head = item / blocks, token = first + item % blocks * blockRows;
                    new Span<double>(sum + (long)item * _dim, _dim).Clear();
                    AddRows(b, token, Math.Min(blockRows, end - token), head, (float*)scratch, sum + (long)item * _dim);
                });
            for (int head = 0; head < _heads; head++)
            {
                double* total = sum + (long)head * blocks * _dim;
                if (!plan.Options.CenterKeys)
                    new Span<double>(total, _dim).Clear();
                else
                    AddParts(total, blocks, _dim);
                Mean(total, length, mean + head * _dim);
            }

            workers.Run(_heads * blocks, floats * sizeof(float), (item, scratch) =>
            {
                int head = item / blocks, token = first + item % blocks * blockRows, rows = Math.Min(blockRows, end - token);
                float* tile = (float*)scratch, panels = tile + LoadTile * (long)(_dim + _columns), run = panels + PanelFloats;
                float* x = keep ? keptX + item * xFloats : run + GramFloats;
                double* partial = gram + (long)item * _k * _k;
                PackSketch(sketch.Of(b, head), panels);
                new Span<double>(partial, _k * _k).Clear();
                for (int i = 0; i < rows; i += BlockRows)
                {
                    int here = Math.Min(BlockRows, rows - i);
                    SketchRows(b, token + i, here, head, mean + head * _dim, panels, tile, x);
                    AddGram(x, here, run, partial);
                }
            });
            workers.Run(_heads, (long)_k * _k * sizeof(double), (head, scratch) =>
            {
                double* total = gram + (long)head * blocks * _k * _k;
                AddParts(total, blocks, _k * _k);
                Factor(b, head, total, (double*)scratch, solve + (long)head * _k * _columns);
            });
            if (_failed is not null)
                return;
            workers.Run(_heads * blocks, floats * sizeof(float), (item, scratch) =>
            {
                int head = item / blocks, token = first + item % blocks * blockRows, rows = Math.Min(blockRows, end - token);
                float* tile = (float*)scratch, solved = tile + LoadTile * _dim, panels = solved + (long)LoadTile * _columns;
                float* x = keep ? keptX + item * xFloats : panels + PanelFloats;
                if (!keep)
                    PackSketch(sketch.Of(b, head), panels);
                for (int i = 0; i < rows; i += BlockRows)
                {
                    int here = Math.Min(BlockRows, rows - i);
                    if (!keep)
                        SketchRows(b, token + i, here, head, mean + head * _dim, panels, tile, x);
                    Score(x, here, solve + (long)head * _k * _columns, solved, Output(b, token + i, head));
                }
            });
        }

        /// <summary>Adds parts 1 to <paramref name="parts"/> - 1 to part 0, in order.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void AddParts(double* total, int parts, int length)
        {
            for (int i = 1; i < parts; i++)
                for (int e = 0; e < length; e++)
                    total[e] += total[(long)i * length + e];
        }

        private float* Output(int b, int token, int head) => leverage + (long)(plan.Shape.CuSeqlens[b] + token) * _heads + head;

        private void LoadRows(int b, int token, int count, int head, float* rows)
        {
            if (source.Load(b, token, count, head, rows))
                return;
            var (sequence, named) = source.Of(b, head);
            badKey.Find(sequence, token, count, named, rows, _dim);
        }

        /// <summary>Adds the rows to <paramref name="sum"/> [D]: differences from a tile's first row in float32, tiles in double.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void AddRows(int b, int token, int rows, int head, float* tile, double* sum)
        {
            float* lanes = stackalloc float[16];
            for (int i = 0; i < rows; i += LoadTile)
            {
                int here = Math.Min(LoadTile, rows - i);
                LoadRows(b, token + i, here, head, tile);
                for (int d = 0; d < _dim; d += TLanes.Count)
                {
                    TVector origin = TLanes.Load(tile + d), differences = TLanes.Broadcast(0);
                    for (int r = 1; r < here; r++)
                        differences = TLanes.Add(differences, TLanes.Subtract(TLanes.Load(tile + r * _dim + d), origin));
                    TLanes.Store(differences, lanes);
                    for (int l = 0; l < TLanes.Count; l++)
                        sum[d + l] += (double)here * tile[d + l] + lanes[l];
                }
            }
        }

        private void Mean(double* sum, int rows, float* mean)
        {
            for (int d = 0; d < _dim; d++)
                mean[d] = (float)(sum[d] / rows);
        }

        /// <summary>Phi [D, k] to panels <c>[columns / W][D][W]</c>, zeros beyond k.</summary>
        private void PackSketch(ReadOnlySpan<float> phi, float* panels)
        {
            int width = _width;
            for (int panel = 0; panel < _columns; panel += width)
                for (int d = 0; d < _dim; d++, panels += width)
                {
                    int here = Math.Clamp(_k - panel, 0, width);
                    phi.Slice(d * _k + Math.Min(panel, _k), here).CopyTo(new Span<float>(panels, here));
                    new Span<float>(panels + here, width - here).Clear();
                }
        }

        /// <summary><c>X = (keys - mean)·Phi</c> for some rows; rows beyond, up to a whole tile, are computed from zeros.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void SketchRows(int b, int token, int rows, int head, float* mean, float* panels, float* tile, float* x)
        {
            int width = _width;
            for (int i = 0; i < rows; i += LoadTile)
            {
                int here = Math.Min(LoadTile, rows - i), padded = MatrixTile<TLanes, TVector>.PaddedRows(here);
                LoadRows(b, token + i, here, head, tile);
                if (plan.Options.CenterKeys)
                    RowLoader<TLanes, TVector>.Subtract(mean, tile, here, _dim);
                new Span<float>(tile + here * _dim, (padded - here) * _dim).Clear();
                for (int panel = 0; panel < _columns; panel += width)
                    for (int r = 0; r < padded; r += MatrixTile<TLanes, TVector>.Rows)
                        MatrixTile<TLanes, TVector>.Compute(tile + r * _dim, _dim, 1, panels + (long)panel * _dim, width, _dim,
                            x + (long)(i + r) * _columns + panel, _columns, width);
            }
            new Span<float>(x + (long)MatrixTile<TLanes, TVector>.PaddedRows(rows) * _columns, _columns).Clear();
        }

        /// <summary>Adds <c>XᵀX</c> to <paramref name="gram"/> [k, k].</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void AddGram(float* x, int rows, float* run, double* gram)
        {
            int width = _width;
            for (int i = 0; i < rows; i += GramRun, x += (long)GramRun * _columns)
            {
                int depth = Math.Min(GramRun, rows - i);
                for (int panel = 0; panel < _columns; panel += width)
                    for (int r = 0; r < _k; r += MatrixTile<TLanes, TVector>.Rows)
                        MatrixTile<TLanes, TVector>.Compute(x + r, 1, _columns, x + panel, _columns, depth, run + (long)r * _columns + panel, _columns, width);
                for (int r = 0; r < _k; r++)
                    AddWidened(run + (long)r * _columns, gram + r * _k);
            }
        }

        /// <summary>Adds k floats to k doubles; k is a multiple of 16.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private void AddWidened(float* values, double* sums)
        {
            for (int c = 0; c < _k; c += Vector256<float>.Count)
            {
                var (low, high) = Vector256.Widen(Vector256.Load(values + c));
                (Vector256.Load(sums + c) + low).Store(sums + c);
                (Vector256.Load(sums + c + 4) + high).Store(sums + c + 4);
            }
        }

        /// <summary>Factorises; <paramref name="solve"/> [k, columns] receives <c>L⁻ᵀ</c>, so that <c>y = x·solve</c>.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private bool Factor(int b, int head, double* gram, double* inverse, float* solve)
        {
            if (GramFactor.InvertFactor(new ReadOnlySpan<double>(gram, _k * _k), _k, plan.Options.Epsilon, new Span<double>(inverse, _k * _k)) is null)
            {
                lock (_lock)
                    if (_failed is null || source.Of(b, head).CompareTo(_failed.Value) < 0)
                        _failed = source.Of(b, head);
                return false;
            }
            new Span<float>(solve, _k * _columns).Clear();
            for (int i = 0; i < _k; i++)
                for (int j = 0; j <= i; j++)
                    solve[(long)j * _columns + i] = (float)inverse[i * _k + j];
            return true;
        }

        /// <summary><c>o_i = ||x_i·L⁻ᵀ||²</c>, written with stride Hkv.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void Score(float* x, int rows, float* solve, float* solved, float* output)
        {
            int width = _width;
            for (int i = 0; i < rows; i += MatrixTile<TLanes, TVector>.Rows)
            {
                for (int panel = 0; panel < _columns; panel += width)
                    MatrixTile<TLanes, TVector>.Compute(x + (long)i * _columns, _columns, 1, solve + panel, _columns, _k, solved + panel, _columns, width);
                for (int r = 0; r < Math.Min(MatrixTile<TLanes, TVector>.Rows, rows - i); r++)
                {
                    var sum = TLanes.Broadcast(0);
                    for (int c = 0; c < _columns; c += TLanes.Count)
                    {
                        var y = TLanes.Load(solved + (long)r * _columns + c);
                        sum = TLanes.MultiplyAdd(y, y, sum);
                    }
                    output[(long)(i + r) * _heads] = TLanes.Sum(sum);
                }
            }
        }
    }
}
