namespace Compactor.Native.Compression;

/// <summary>How much of a whole model's cache is kept: what each layer of each sequence gets.</summary>
public sealed class ModelBudget
{
    private readonly Budget[] _layers;
    private readonly long? _bytes;

    private ModelBudget(Budget[] layers, long? bytes = null) => (_layers, _bytes) = (layers, bytes);

    /// <summary>The same budget for every layer of every sequence: one retention, or tokens a head.</summary>
    public static ModelBudget Same(Budget budget) => new([budget]);

    /// <summary>A budget for each layer, the same for every sequence.</summary>
    /// <param name="layers">One budget a layer, layer 0 first.</param>
    /// <exception cref="CompactorException">There is none.</exception>
    public static ModelBudget PerLayer(IReadOnlyList<Budget> layers) => layers.Count > 0
        ? new([.. layers])
        : throw CompactorException.Argument("There are no layer budgets; give one a layer.");

    /// <summary>
    /// Bytes of keys and values of all layers and sequences together, never exceeded: even over layers; within a layer every sequence gets what is always kept of it, and
    /// as near to the proportion of its length as that leaves.
    /// </summary>
    /// <exception cref="CompactorException">The number is below 1.</exception>
    public static ModelBudget Bytes(long bytes) => new([Budget.Bytes(bytes)], bytes);

    /// <summary>Budgets of the sequences of one layer.</summary>
    /// <param name="layer">Index of the layer among those the budget is for, from 0.</param>
    /// <param name="layers">Layers the budget is for, all of one shape.</param>
    /// <param name="shape">Shape of the layer; not ragged.</param>
    /// <param name="options">What is always kept.</param>
    /// <returns><c>[B]</c> budgets.</returns>
    /// <exception cref="CompactorException">There are fewer layer budgets, or bytes do not hold what is always kept: the message says how many would.</exception>
    public Budget[] Of(int layer, int layers, LayerShape shape, CompressionOptions options)
    {
        if (layer < 0 || layer >= layers)
            throw CompactorException.Argument($"There is no layer {layer}; the budget is for {layers}.");
        if (_bytes is { } bytes)
            return Share(bytes, layers, shape, options);
        if (_layers.Length > 1 && _layers.Length != layers)
            throw CompactorException.Argument($"There are {_layers.Length} layer budgets for {layers} layers; give one a layer.");
        var budgets = new Budget[shape.Sequences];
        Array.Fill(budgets, _layers.Length == 1 ? _layers[0] : _layers[layer]);
        return budgets;
    }

    /// <summary>Shares grow with a common rate of bytes a token, but not below a sequence's floor: those on their floor leave the rest to the others.</summary>
    private static Budget[] Share(long bytes, int layers, LayerShape shape, CompressionOptions options)
    {
        if (shape.IsRagged)
            throw CompactorException.Argument("Bytes are shared over sequences by their tokens; give a ragged layer's sequences budgets of their own.");
        int sequences = shape.Sequences;
        var floors = new long[sequences];
        long layerBytes = bytes / layers, left = layerBytes, floorOfAll = 0, tokens = 0;
        for (int b = 0; b < sequences; b++)
        {
            floors[b] = Math.Max(shape.LengthOf(b) > 0 ? 1 : 0, Budget.FloorBytes(options, shape.LengthOf(b), shape.KvHeads, shape.BytesPerPair));
            floorOfAll += floors[b];
            tokens += shape.LengthOf(b);
        }
        if (floorOfAll > layerBytes)
            throw new CompactorException(CompactorStatus.BudgetNotMet,
                $"A budget of {bytes} bytes over {layers} layers leaves {layerBytes} a layer; the protected or minimum tokens of its {sequences} sequences take {floorOfAll}. " +
                $"Raise it to {floorOfAll * layers} or more, or lower the protected or minimum token counts.");
        var onFloor = new bool[sequences];
        for (bool changed = true; changed;)
        {
            changed = false;
            // At one rate for all that are not on their floor: the rate only falls when another joins them, so none leaves.
            for (int b = 0; b < sequences; b++)
                if (!onFloor[b] && (Int128)left * shape.LengthOf(b) < (Int128)floors[b] * Math.Max(1, tokens))
                {
                    (onFloor[b], changed) = (true, true);
                    left -= floors[b];
                    tokens -= shape.LengthOf(b);
                }
        }
        var budgets = new Budget[sequences];
        for (int b = 0; b < sequences; b++)
            budgets[b] = Budget.Bytes(Math.Max(1, onFloor[b] ? floors[b] : (long)((Int128)left * shape.LengthOf(b) / Math.Max(1, tokens))));
        return budgets;
    }

    /// <inheritdoc/>
    public override string ToString() => _bytes is null && _layers.Length > 1 ? $"{_layers.Length} layer budgets" : _layers[0].ToString();
}
