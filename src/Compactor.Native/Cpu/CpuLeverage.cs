using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>
/// Approximate leverage scores, <c>o_i = ||L⁻¹ x_i||²</c> with <c>X = (Kp - mean)·Phi</c> and <c>XᵀX + eps·I = L·Lᵀ</c>.
/// Keys are read once (twice when X is not kept), in pieces of 512 rows, and centred around their piece's own mean before anything is squared. What lies between the pieces' means and the mean of all comes after:
/// with <c>v = (piece's mean - mean)·Phi</c>, its rows are <c>x + v</c>, and <c>XᵀX</c> is the sum of the pieces' own and of <c>rows·v·vᵀ</c>, since rows less their mean sum to nothing.
/// X and the solve are float32 matrix tiles; the Gram matrix sums runs of 16 rows in float32 and the runs in double, in order: its rounding counts with the square of X's condition,
/// and runs of 128 cost 4e-5 of the scores where D = k = 16. Means between pieces and the factorisation are double. Flops a row: 2·D·k for X (twice when X is not kept), k² for Gram, 2·k² for the solve.
/// A leverage chunk is one work item. The pieces of a whole sequence are cut into at most 64 blocks; the cut depends on the sequence's length alone, so results do not depend on threads or on other sequences.
/// </summary>
internal static unsafe class CpuLeverage<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    private const int MaxBlocks = 64, PieceRows = 512, GramRun = 16;

    /// <summary>Rows summed, and sketched, at once: a multiple of the tile height.</summary>
    private const int SumTile = 8 * MatrixTile<TLanes, TVector>.Rows;

    /// <summary>Most bytes of X kept until a whole sequence is solved; where one head's take more, it is computed twice.</summary>
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

        /// <summary>A piece's rows, with room for whole tiles.</summary>
        private long RowFloats => (long)MatrixTile<TLanes, TVector>.PaddedRows(PieceRows) * _dim;

        private long ScratchFloats => new Scratch(this, null).End - (float*)null;

        /// <summary>A thread's own memory: a piece's rows, solved rows of a tile, Phi in panels, a run's Gram matrix, a mean.</summary>
        private readonly struct Scratch(Call call, float* address)
        {
            public float* Rows => address;
            public float* Solved => Rows + call.RowFloats;
            public float* Panels => Solved + MatrixTile<TLanes, TVector>.Rows * (long)call._columns;
            public float* Run => Panels + call.PanelFloats;
            public float* Mean => Run + call.GramFloats;
            public float* End => Mean + call._dim;
        }

        private static int Pieces(int rows) => (rows + PieceRows - 1) / PieceRows;

        /// <summary>Rows of one of the pieces that so many are cut into.</summary>
        private static int RowsOf(int piece, int length) => Math.Min(PieceRows, length - piece * PieceRows);

        public void Chunks(int b, int first, int end)
        {
            int chunk = Math.Min(plan.Options.LeverageChunk, end - first), chunks = (end - first + chunk - 1) / chunk, most = Pieces(chunk);
            long xFloats = SketchFloats(Math.Min(chunk, PieceRows)), floats = ScratchFloats + most * (xFloats + _k) + (long)_k * _columns, doubles = (long)most * _dim + 2L * _k * _k;
            workers.Run(chunks * _heads, doubles * sizeof(double) + floats * sizeof(float), (item, memory) =>
            {
                int head = item % _heads, token = first + item / _heads * chunk, rows = Math.Min(chunk, end - token), pieces = Pieces(rows);
                double* sums = (double*)memory, gram = sums + (long)most * _dim, inverse = gram + _k * _k;
                float* solve = (float*)(inverse + _k * _k), shifts = solve + (long)_k * _columns, x = shifts + most * _k;
                var scratch = new Scratch(this, x + most * xFloats);
                PackSketch(sketch.Of(b, head), scratch.Panels);
                new Span<double>(gram, _k * _k).Clear();
                for (int piece = 0; piece < pieces; piece++)
                    AddPiece(b, token, rows, head, piece, scratch, sums + (long)piece * _dim, x + piece * xFloats, gram);
                AddBetween(b, head, rows, sums, shifts, gram);
                if (Factor(b, head, gram, inverse, solve))
                    for (int piece = 0; piece < pieces; piece++)
                        Score(b, token, rows, head, piece, x + piece * xFloats, solve, shifts + piece * _k, scratch);
            });
        }

        /// <summary>As many heads at once as there is memory to keep X of.</summary>
        public void WholeSequence(int b, int first, int end)
        {
            long bytes = SketchFloats(PieceRows) * Pieces(end - first) * sizeof(float);
            int together = (int)Math.Clamp(MaxKeptSketchBytes / bytes, 1, _heads);
            for (int head = 0; head < _heads; head += together)
                WholeSequence(b, first, end, head, Math.Min(together, _heads - head), keep: bytes <= MaxKeptSketchBytes);
        }

        private void WholeSequence(int b, int first, int end, int firstHead, int heads, bool keep)
        {
            int length = end - first, pieces = Pieces(length), perBlock = (pieces + MaxBlocks - 1) / MaxBlocks, blocks = (pieces + perBlock - 1) / perBlock;
            long xFloats = SketchFloats(PieceRows), floats = ScratchFloats + (keep ? 0 : xFloats);
            using var rentedSums = workers.Rent((long)heads * pieces * _dim * sizeof(double));
            using var rentedShifts = workers.Rent((long)heads * pieces * _k * sizeof(float));
            using var rentedGrams = workers.Rent((long)heads * blocks * _k * _k * sizeof(double));
            using var rentedSolves = workers.Rent((long)heads * _k * _columns * sizeof(float));
            using var rentedX = workers.Rent(keep ? xFloats * heads * pieces * sizeof(float) : 0);
            double* sums = (double*)rentedSums.Address, grams = (double*)rentedGrams.Address;
            float* shifts = (float*)rentedShifts.Address, solves = (float*)rentedSolves.Address, kept = (float*)rentedX.Address;

            workers.Run(heads * blocks, floats * sizeof(float), (item, memory) =>
            {
                int i = item / blocks, from = item % blocks * perBlock;
                var scratch = new Scratch(this, (float*)memory);
                double* gram = grams + (long)item * _k * _k;
                PackSketch(sketch.Of(b, firstHead + i), scratch.Panels);
                new Span<double>(gram, _k * _k).Clear();
                for (int piece = from; piece < Math.Min(from + perBlock, pieces); piece++)
                {
                    long at = (long)i * pieces + piece;
                    AddPiece(b, first, length, firstHead + i, piece, scratch, sums + at * _dim, keep ? kept + at * xFloats : scratch.End, gram);
                }
            });
            workers.Run(heads, (long)_k * _k * sizeof(double), (i, memory) =>
            {
                double* gram = grams + (long)i * blocks * _k * _k;
                AddParts(gram, blocks, _k * _k);
                AddBetween(b, firstHead + i, length, sums + (long)i * pieces * _dim, shifts + (long)i * pieces * _k, gram);
                Factor(b, firstHead + i, gram, (double*)memory, solves + (long)i * _k * _columns);
            });
            if (_failed is not null)
                return;
            workers.Run(heads * blocks, floats * sizeof(float), (item, memory) =>
            {
                int i = item / blocks, from = item % blocks * perBlock;
                var scratch = new Scratch(this, (float*)memory);
                if (!keep)
                    PackSketch(sketch.Of(b, firstHead + i), scratch.Panels);
                for (int piece = from; piece < Math.Min(from + perBlock, pieces); piece++)
                {
                    long at = (long)i * pieces + piece;
                    float* x = keep ? kept + at * xFloats : scratch.End;
                    if (!keep)
                        SketchPiece(b, first, length, firstHead + i, piece, scratch, sums + at * _dim, x);
                    Score(b, first, length, firstHead + i, piece, x, solves + (long)i * _k * _columns, shifts + at * _k, scratch);
                }
            });
        }

        /// <summary>Sketches a piece and adds its Gram matrix.</summary>
        private void AddPiece(int b, int first, int length, int head, int piece, Scratch scratch, double* sum, float* x, double* gram)
        {
            SketchPiece(b, first, length, head, piece, scratch, sum, x);
            AddGram(x, RowsOf(piece, length), scratch.Run, gram);
        }

        /// <summary>Sketches a piece of the rows from <paramref name="first"/> on: <paramref name="sum"/> [D] receives the sum of its keys, <paramref name="x"/> its rows around their mean.</summary>
        private void SketchPiece(int b, int first, int length, int head, int piece, Scratch scratch, double* sum, float* x)
        {
            int token = first + piece * PieceRows, rows = RowsOf(piece, length);
            new Span<double>(sum, _dim).Clear();
            LoadRows(b, token, rows, head, scratch.Rows);
            if (plan.Options.CenterKeys)
                for (int i = 0; i < rows; i += SumTile)
                    AddRows(scratch.Rows + (long)i * _dim, Math.Min(SumTile, rows - i), sum);
            for (int d = 0; d < _dim; d++)
                scratch.Mean[d] = (float)(sum[d] / rows);
            for (int i = 0; i < rows; i += SumTile)
                SketchRows(scratch.Rows + (long)i * _dim, Math.Min(SumTile, rows - i), scratch, x + (long)i * _columns);
            new Span<float>(x + (long)MatrixTile<TLanes, TVector>.PaddedRows(rows) * _columns, _columns).Clear();
        }

        /// <summary>Adds what the pieces' means add to the Gram matrix, and gives <c>(piece's mean - mean)·Phi</c> of each, [pieces, k].</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void AddBetween(int b, int head, int length, double* sums, float* shifts, double* gram)
        {
            int pieces = Pieces(length);
            new Span<float>(shifts, pieces * _k).Clear();
            if (pieces == 1 || !plan.Options.CenterKeys)
                return;
            double* mean = stackalloc double[_dim], shift = stackalloc double[_k];
            for (int d = 0; d < _dim; d++)
            {
                mean[d] = 0;
                for (int piece = 0; piece < pieces; piece++)
                    mean[d] += sums[(long)piece * _dim + d];
                mean[d] /= length;
            }
            fixed (float* phi = sketch.Of(b, head))
                for (int piece = 0; piece < pieces; piece++)
                {
                    int rows = RowsOf(piece, length);
                    new Span<double>(shift, _k).Clear();
                    for (int d = 0; d < _dim; d++)
                    {
                        var apart = Vector256.Create(sums[(long)piece * _dim + d] / rows - mean[d]);
                        for (int c = 0; c < _k; c += Vector256<float>.Count)
                        {
                            var (low, high) = Vector256.Widen(Vector256.Load(phi + d * _k + c));
                            (Vector256.Load(shift + c) + apart * low).Store(shift + c);
                            (Vector256.Load(shift + c + 4) + apart * high).Store(shift + c + 4);
                        }
                    }
                    for (int c = 0; c < _k; c++)
                    {
                        shifts[(long)piece * _k + c] = (float)shift[c];
                        // means so far apart have no factor in float32
                        if (!float.IsFinite((float)shift[c]))
                            gram[0] = double.NaN;
                        var row = Vector256.Create(rows * shift[c]);
                        for (int e = 0; e <= c; e += Vector256<double>.Count)
                            (Vector256.Load(gram + c * _k + e) + row * Vector256.Load(shift + e)).Store(gram + c * _k + e);
                    }
                }
        }

        /// <summary>Adds parts 1 to <paramref name="parts"/> - 1 to part 0, in order.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void AddParts(double* total, int parts, int length)
        {
            for (int i = 1; i < parts; i++)
                for (int e = 0; e < length; e++)
                    total[e] += total[(long)i * length + e];
        }

        private void LoadRows(int b, int token, int count, int head, float* rows)
        {
            if (source.Load(b, token, count, head, rows))
                return;
            var (sequence, named) = source.Of(b, head);
            badKey.Find(sequence, token, count, named, rows, _dim);
        }

        /// <summary>Adds a tile's rows to <paramref name="sum"/> [D]: differences from its first row in float32, tiles in double.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void AddRows(float* tile, int rows, double* sum)
        {
            float* lanes = stackalloc float[16];
            for (int d = 0; d < _dim; d += TLanes.Count)
            {
                TVector origin = TLanes.Load(tile + d), zero = TLanes.Broadcast(0), even = zero, odd = zero;
                float* row = tile + d;
                for (int r = 0; r < rows - 1; r += 2, row += 2 * _dim)
                {
                    even = TLanes.Add(even, TLanes.Subtract(TLanes.Load(row), origin));
                    odd = TLanes.Add(odd, TLanes.Subtract(TLanes.Load(row + _dim), origin));
                }
                if (rows % 2 != 0)
                    even = TLanes.Add(even, TLanes.Subtract(TLanes.Load(row), origin));
                TLanes.Store(TLanes.Add(even, odd), lanes);
                for (int l = 0; l < TLanes.Count; l++)
                    sum[d + l] += (double)rows * tile[d + l] + lanes[l];
            }
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

        /// <summary><c>(tile - mean)·Phi</c>; rows beyond, up to a whole tile of the product, are computed from zeros.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void SketchRows(float* tile, int rows, Scratch scratch, float* x)
        {
            int width = _width, padded = MatrixTile<TLanes, TVector>.PaddedRows(rows);
            float* panels = scratch.Panels;
            if (plan.Options.CenterKeys)
                RowLoader<TLanes, TVector>.Subtract(scratch.Mean, tile, rows, _dim);
            new Span<float>(tile + rows * _dim, (padded - rows) * _dim).Clear();
            for (int panel = 0; panel < _columns; panel += width)
                for (int r = 0; r < padded; r += MatrixTile<TLanes, TVector>.Rows)
                    MatrixTile<TLanes, TVector>.Compute(tile + r * _dim, _dim, 1, panels + (long)panel * _dim, width, _dim, x + (long)r * _columns + panel, _columns, width);
        }

        /// <summary>Adds the lower triangle of <c>XᵀX</c> to <paramref name="gram"/> [k, k].</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void AddGram(float* x, int rows, float* run, double* gram)
        {
            int width = _width, narrow = 2 * TLanes.Count;
            for (int i = 0; i < rows; i += GramRun, x += (long)GramRun * _columns)
            {
                int depth = Math.Min(GramRun, rows - i);
                for (int r = 0; r < _k; r += MatrixTile<TLanes, TVector>.Rows)
                    for (int panel = 0; panel < Math.Min(_columns, r + MatrixTile<TLanes, TVector>.Rows); panel += width)
                        MatrixTile<TLanes, TVector>.Compute(x + r, 1, _columns, x + panel, _columns, depth, run + (long)r * _columns + panel, _columns,
                            r + MatrixTile<TLanes, TVector>.Rows - panel <= narrow ? narrow : width);
                for (int r = 0; r < _k; r++)
                    AddWidened(run + (long)r * _columns, gram + r * _k, r + 1);
            }
        }

        /// <summary>Adds floats to doubles: <paramref name="count"/>, rounded up to a vector, of a row of k.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void AddWidened(float* values, double* sums, int count)
        {
            for (int c = 0; c < count; c += Vector256<float>.Count)
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

        /// <summary><c>o_i = ||(x_i + shift)·L⁻ᵀ||²</c> of a piece, written with stride Hkv.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void Score(int b, int first, int length, int head, int piece, float* x, float* solve, float* shift, Scratch scratch)
        {
            int width = _width, rows = RowsOf(piece, length);
            float* output = leverage + (long)(plan.Shape.CuSeqlens[b] + first + piece * PieceRows) * _heads + head, solved = scratch.Solved, solvedShift = scratch.Run;
            new Span<float>(solvedShift, _columns).Clear();
            for (int j = 0; j < _k; j++)
                for (int c = 0; c < _columns; c += TLanes.Count)
                    TLanes.Store(TLanes.MultiplyAdd(TLanes.Broadcast(shift[j]), TLanes.Load(solve + (long)j * _columns + c), TLanes.Load(solvedShift + c)), solvedShift + c);
            for (int i = 0; i < rows; i += MatrixTile<TLanes, TVector>.Rows)
            {
                for (int panel = 0; panel < _columns; panel += width)
                    MatrixTile<TLanes, TVector>.Compute(x + (long)i * _columns, _columns, 1, solve + panel, _columns, _k, solved + panel, _columns, width);
                for (int r = 0; r < Math.Min(MatrixTile<TLanes, TVector>.Rows, rows - i); r++)
                {
                    var sum = TLanes.Broadcast(0);
                    for (int c = 0; c < _columns; c += TLanes.Count)
                    {
                        var y = TLanes.Add(TLanes.Load(solved + (long)r * _columns + c), TLanes.Load(solvedShift + c));
                        sum = TLanes.MultiplyAdd(y, y, sum);
                    }
                    output[(long)(i + r) * _heads] = TLanes.Sum(sum);
                }
            }
        }
    }
}
