using Compactor.Native;
using Compactor.Native.Compression;
using LibraryBudget = Compactor.Native.Compression.Budget;

namespace Compactor.Abi;

/// <summary>The structs of the interface as what the library takes, checked.</summary>
internal static unsafe class Inputs
{
    /// <summary>0 or 1.</summary>
    public static bool Flag(string name, int value) => value is 0 or 1 ? value == 1 : throw AbiException.Argument($"{name} is {value}; use 0 or 1.");

    /// <summary>A field that later versions may give a meaning.</summary>
    public static void Reserved(string name, int value)
    {
        if (value != 0)
            throw AbiException.Argument($"{name}.reserved is {value}; it must be 0. Zero the struct before filling it.");
    }

    /// <summary>One of the constants of an enumeration.</summary>
    public static T Constant<T>(string name, int value) where T : struct, Enum
    {
        var constant = (T)Enum.ToObject(typeof(T), value);
        return Enum.IsDefined(constant) ? constant : throw AbiException.Argument($"{name} is {value}, which is none of the constants it takes.");
    }

    public static LayerShape ToShape(Shape* pointer)
    {
        var shape = Arguments.Read("shape", pointer);
        if (shape.Sequences < 0 || shape.Sequences == int.MaxValue)
            throw AbiException.Argument($"shape.sequences is {shape.Sequences}; use 0 to {int.MaxValue - 1}.");
        int[] cuSeqlens = Arguments.Copy("shape.cu_seqlens", shape.CuSeqlens, shape.Sequences + 1L, shape.Sequences + 1L);
        return new LayerShape(cuSeqlens, shape.QueryHeads, shape.KvHeads, shape.HeadDim, Constant<ElementType>("shape.element_type", shape.ElementType))
        {
            Layer = Index("shape.layer", shape.Layer),
            FirstHead = Index("shape.first_head", shape.FirstHead),
            SequenceIds = SequenceIds(shape.SequenceIds, shape.Sequences),
        };
    }

    public static int Index(string name, int value) => value >= 0 ? value : throw AbiException.Argument($"{name} is {value}; use 0 or more.");

    public static IReadOnlyList<long>? SequenceIds(long* ids, int count) => ids is null ? null : Arguments.Copy("sequence_ids", ids, count, count);

    public static CompressionOptions ToOptions(Options* pointer)
    {
        var o = Arguments.Read("options", pointer);
        return new CompressionOptions
        {
            SketchDimension = o.SketchDimension,
            SketchSharing = Constant<SketchSharing>("options.sketch_sharing", o.SketchSharing),
            CenterKeys = Flag("options.center_keys", o.CenterKeys),
            LeverageChunk = o.LeverageChunk,
            LeverageScope = Constant<NormalizationScope>("options.leverage_scope", o.LeverageScope),
            Epsilon = o.Epsilon,
            AttentionChunk = o.AttentionChunk,
            GroupReduction = Constant<GroupReduction>("options.group_reduction", o.GroupReduction),
            AttentionScale = o.AttentionScale,
            WeightByValueNorm = Flag("options.weight_by_value_norm", o.WeightByValueNorm),
            PoolWidth = o.PoolWidth,
            AttentionScope = Constant<NormalizationScope>("options.attention_scope", o.AttentionScope),
            UnbiasedStandardDeviation = Flag("options.unbiased_standard_deviation", o.UnbiasedStandardDeviation),
            StandardDeviationFloor = o.StandardDeviationFloor,
            LeverageWeight = o.LeverageWeightRule switch
            {
                0 => o.LeverageWeight,
                1 => LeverageWeight.OneMinusRetention,
                _ => throw AbiException.Argument($"options.leverage_weight_rule is {o.LeverageWeightRule}; use COMPACTOR_WEIGHT_FIXED or COMPACTOR_WEIGHT_ONE_MINUS_RETENTION."),
            },
            ProtectFirst = o.ProtectFirst,
            ProtectLast = o.ProtectLast,
            ScoreProtected = Flag("options.score_protected", o.ScoreProtected),
            ProtectedBudget = Constant<ProtectedBudget>("options.protected_budget", o.ProtectedBudget),
            SelectionScope = Constant<SelectionScope>("options.selection_scope", o.SelectionScope),
            RetentionCount = Constant<RetentionCount>("options.retention_count", o.RetentionCount),
            MinTokensPerHead = o.MinTokensPerHead,
            Seed = o.Seed,
        };
    }

    public static Options FromOptions(CompressionOptions o) => new()
    {
        SketchDimension = o.SketchDimension,
        SketchSharing = (int)o.SketchSharing,
        CenterKeys = o.CenterKeys ? 1 : 0,
        LeverageChunk = o.LeverageChunk,
        LeverageScope = (int)o.LeverageScope,
        Epsilon = o.Epsilon,
        AttentionChunk = o.AttentionChunk,
        GroupReduction = (int)o.GroupReduction,
        AttentionScale = o.AttentionScale,
        WeightByValueNorm = o.WeightByValueNorm ? 1 : 0,
        PoolWidth = o.PoolWidth,
        AttentionScope = (int)o.AttentionScope,
        UnbiasedStandardDeviation = o.UnbiasedStandardDeviation ? 1 : 0,
        StandardDeviationFloor = o.StandardDeviationFloor,
        LeverageWeight = o.LeverageWeight.Fixed ?? 0,
        LeverageWeightRule = o.LeverageWeight.Fixed is null ? 1 : 0,
        ProtectFirst = o.ProtectFirst,
        ProtectLast = o.ProtectLast,
        ScoreProtected = o.ScoreProtected ? 1 : 0,
        ProtectedBudget = (int)o.ProtectedBudget,
        SelectionScope = (int)o.SelectionScope,
        RetentionCount = (int)o.RetentionCount,
        MinTokensPerHead = o.MinTokensPerHead,
        Seed = o.Seed,
    };

    /// <summary>One budget for each of the sequences; a single one is for all.</summary>
    public static LibraryBudget[] ToBudgets(Budget* pointer, int count, int sequences)
    {
        if (count != 1 && count != sequences)
            throw AbiException.Argument($"There are {count} budgets for {sequences} sequences; give one for all, or one a sequence.");
        var given = Array.ConvertAll(Arguments.ReadAll("budgets", pointer, count), ToBudget);
        if (given.Length == sequences)
            return given;
        var budgets = new LibraryBudget[sequences];
        Array.Fill(budgets, given[0]);
        return budgets;
    }

    private static LibraryBudget ToBudget(Budget budget)
    {
        return budget.Unit switch
        {
            0 => LibraryBudget.Retention(budget.Amount),
            1 => LibraryBudget.Tokens((int)Whole(int.MaxValue)),
            2 => LibraryBudget.Bytes(Whole(1L << 53)),
            _ => throw AbiException.Argument($"A budget's unit is {budget.Unit}; use one of COMPACTOR_BUDGET_*."),
        };

        long Whole(long most) => budget.Amount >= 1 && budget.Amount <= most && budget.Amount == Math.Floor(budget.Amount)
            ? (long)budget.Amount
            : throw AbiException.Argument($"A budget of {(budget.Unit == 1 ? "tokens" : "bytes")} is {budget.Amount}; use a whole number from 1 to {most}.");
    }

    /// <summary>The rotation to undo; null for none.</summary>
    /// <param name="pointer">The struct.</param>
    /// <param name="tokens">Tokens that positions and tables are of; null where slots of a cache have stored their positions.</param>
    public static RotaryEmbedding? ToRotary(Rotary* pointer, int? tokens)
    {
        if (pointer is null)
            return null;
        var r = Arguments.Read("rotary", pointer);
        Reserved("rotary", r.Reserved);
        var style = Constant<RotaryStyle>("rotary.style", r.Style);
        bool tables = r.Cos is not null || r.Sin is not null;
        if ((r.Theta != 0 ? 1 : 0) + (r.InverseFrequencies is not null ? 1 : 0) + (tables ? 1 : 0) != 1)
            throw AbiException.Argument("rotary has no source, or several; give exactly one of theta, inverse_frequencies, or cos and sin.");
        if (r.RotaryDim < 2 || r.RotaryDim > LayerShape.MaxHeadDim || int.IsOddInteger(r.RotaryDim))
            throw AbiException.Argument($"rotary.rotary_dim is {r.RotaryDim}; use an even number from 2 to the head dimension.");
        if (r.PositionCount < 0 || r.TableRows < 0 || r.TableRows > int.MaxValue)
            throw AbiException.Argument($"rotary has {r.PositionCount} positions and {r.TableRows} table rows; counts are 0 to {int.MaxValue}.");
        if (r.Positions is null && r.PositionCount != 0)
            throw AbiException.Argument($"rotary.position_count is {r.PositionCount} and rotary.positions is NULL; give both, or neither.");
        if (!tables && r.TableRows != 0)
            throw AbiException.Argument($"rotary.table_rows is {r.TableRows} and rotary.cos and rotary.sin are NULL; give all three, or none.");
        if (r.Positions is not null && r.PositionCount != tokens)
            throw AbiException.Argument(tokens is null ? "rotary has positions; a cache has stored those of its slots. Leave them NULL." : $"rotary has {r.PositionCount} positions for {tokens} tokens.");
        if (tables && tokens is not null && r.TableRows != tokens)
            throw AbiException.Argument($"rotary has {r.TableRows} table rows for {tokens} tokens.");
        if (tables)
        {
            if (r.Positions is not null)
                throw AbiException.Argument("rotary has positions beside cos and sin, whose rows are those of tokens; leave positions NULL.");
            long entries = r.TableRows * (r.RotaryDim / 2);
            return RecentRotations.OfCalls.OfTables(style, r.RotaryDim, Arguments.Span("rotary.cos", r.Cos, entries), Arguments.Span("rotary.sin", r.Sin, entries));
        }
        var frequencies = r.InverseFrequencies is null ? RotaryEmbedding.Frequencies(r.Theta, r.RotaryDim) : Arguments.Span("rotary.inverse_frequencies", r.InverseFrequencies, r.RotaryDim / 2);
        return RecentRotations.OfCalls.OfPositions(style, frequencies, Arguments.Span("rotary.positions", r.Positions, r.PositionCount));
    }

    /// <summary>Given Phi; null to draw it.</summary>
    public static Sketch? ToSketch(float* phi, long count, LayerPlan plan)
    {
        if (phi is null && count == 0)
            return null;
        long one = (long)plan.Shape.HeadDim * plan.Options.SketchDimension, all = one * plan.Shape.Sequences * plan.Shape.KvHeads;
        if (count != one && count != all)
            throw AbiException.Argument($"phi has {count} floats; give one Phi of {one}, or {all} for every sequence and KV head.");
        return Sketch.FromValues(Arguments.Copy("phi", phi, count, count), plan.Shape, plan.Options.SketchDimension);
    }

    public static SelectionPolicy ToPolicy(int policy, ulong seed) => policy switch
    {
        0 => SelectionPolicy.Compactor,
        1 => SelectionPolicy.LeverageOnly,
        2 => SelectionPolicy.AttentionOnly,
        3 => SelectionPolicy.Random(seed),
        4 => SelectionPolicy.Recent,
        _ => throw AbiException.Argument($"The policy is {policy}; use one of COMPACTOR_POLICY_*."),
    };

    /// <summary>A tensor whose every row lies in the memory its host vouches for.</summary>
    /// <param name="memory">Notes the memory.</param>
    /// <param name="name">Name in messages.</param>
    /// <param name="pointer">The struct.</param>
    /// <param name="shape">Tokens of the sequences it holds; null for one packed run of tokens.</param>
    public static TensorView ToTensor(Arguments memory, string name, Tensor* pointer, LayerShape? shape = null)
    {
        var t = Arguments.Read(name, pointer);
        Reserved(name, t.Reserved);
        var type = Constant<ElementType>($"{name}.element_type", t.ElementType);
        if (t.Tokens < 0 || t.Heads < 1 || t.Dim < 1)
            throw AbiException.Argument($"{name} is [{t.Tokens}, {t.Heads}, {t.Dim}] (tokens, heads, dim); use 0 or more tokens, 1 or more heads and dimensions.");
        if (t.TokenStride < 0 || t.HeadStride < 0 || t.SequenceStride < 0)
            throw AbiException.Argument($"{name} has strides {t.TokenStride}, {t.HeadStride} and {t.SequenceStride}; they must not be negative.");
        if (t.SequenceStride != 0 && shape is null)
            throw AbiException.Argument($"{name} is a padded batch; pass one sequence (its address, sequence_stride 0).");
        if (shape is not null && t.Tokens != shape.Tokens)
            throw AbiException.Argument($"{name} has {t.Tokens} tokens; the plan has {shape.Tokens}.");
        Arguments.RequirePointer(name + ".data", t.Data, t.Tokens, type.Size());
        Int128 row = (Int128)(t.Heads - 1) * t.HeadStride + t.Dim, end = 0;
        if (t.SequenceStride == 0)
            end = t.Tokens == 0 ? 0 : (Int128)(t.Tokens - 1) * t.TokenStride + row;
        else
            for (int b = 0; b < shape!.Sequences; b++)
                if (shape.LengthOf(b) is > 0 and int length)
                    end = (Int128)b * t.SequenceStride + (Int128)(length - 1) * t.TokenStride + row is var last && last > end ? last : end;
        var bytes = (UInt128)end * (uint)type.Size();
        if (bytes > t.DataBytes)
            throw AbiException.Argument($"{name} reaches to byte {bytes} by its shape and strides; data_bytes is {t.DataBytes}.");
        memory.Region(name, t.Data, bytes, written: false);
        return new TensorView((nint)t.Data, type, t.Tokens, t.Heads, t.Dim, t.TokenStride, t.HeadStride, t.SequenceStride);
    }

    /// <summary>A tensor that is computed with, not only copied.</summary>
    public static TensorView ToScoredTensor(Arguments memory, string name, Tensor* pointer, int heads, int dim, LayerShape? shape = null)
    {
        var view = ToTensor(memory, name, pointer, shape);
        if (view.Heads != heads || view.Dim != dim)
            throw AbiException.Argument($"{name} has {view.Heads} heads of dimension {view.Dim}; expected {heads} of {dim}.");
        return view.ElementType == ElementType.Opaque8
            ? throw new AbiException(Status.Unsupported, $"{name} holds opaque bytes, which cannot be computed with; convert it to float32, float16 or bfloat16 first.")
            : view;
    }

    /// <summary>One layer's inputs; the library checks their shapes against each other.</summary>
    public static (LayerInputs Inputs, SelectionPolicy Policy, Sketch? Sketch) ToLayer(Arguments memory, Layer* pointer, LayerPlan plan)
    {
        var l = Arguments.Read("layer", pointer);
        var policy = ToPolicy(l.Policy, l.PolicySeed);
        var shape = plan.Shape;
        var inputs = new LayerInputs
        {
            Key = ToTensor(memory, "layer.key", l.Key, shape),
            Value = ToTensor(memory, "layer.value", l.Value, shape),
            KeyPreRope = l.KeyPreRope is null ? null : ToTensor(memory, "layer.key_pre_rope", l.KeyPreRope, shape),
            Query = l.Query is null ? null : ToTensor(memory, "layer.query", l.Query, shape),
            Rotary = ToRotary(l.Rotary, shape.Tokens),
        };
        inputs.Validate(shape);
        if (policy == SelectionPolicy.Compactor && inputs.Query is null && !plan.KeepsEverything)
            Boundary.Warn($"Layer {shape.Layer} comes without queries: leverage alone decides what is kept. Give queries, or ask for COMPACTOR_POLICY_LEVERAGE.");
        return (inputs, policy, ToSketch(l.Phi, l.PhiCount, plan));
    }
}
