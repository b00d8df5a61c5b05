using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>The budget of a whole file: the same for every sequence of every layer, or bytes to share between them.</summary>
internal sealed class FileBudget
{
    private readonly ModelBudget _budget;

    private FileBudget(ModelBudget budget, bool isRetention = false) => (_budget, IsRetention) = (budget, isRetention);

    /// <summary>Whether it is a share of the tokens, which protected tokens may come on top of.</summary>
    public bool IsRetention { get; }

    public static FileBudget Retention(double retention) => new(ModelBudget.Same(Budget.Retention(retention)), isRetention: true);

    public static FileBudget Tokens(int tokensPerHead) => new(ModelBudget.Same(Budget.Tokens(tokensPerHead)));

    public static FileBudget WholeFile(long bytes) => new(ModelBudget.Bytes(bytes));

    /// <summary>Budgets of one layer's sequences.</summary>
    public Budget[] Of(int layers, LayerShape shape, CompressionOptions options) => _budget.Of(0, layers, shape, options);

    public override string ToString() => _budget.ToString();
}
