using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>The budget of a whole file: the same for every sequence of every layer, or bytes to share between them.</summary>
internal sealed class FileBudget
{
    private readonly Budget _budget;
    private readonly long? _bytes;

    private FileBudget(Budget budget, long? bytes = null, bool isRetention = false) => (_budget, _bytes, IsRetention) = (budget, bytes, isRetention);

    /// <summary>Whether it is a share of the tokens, which protected tokens may come on top of.</summary>
    public bool IsRetention { get; }

    public static FileBudget Retention(double retention) => new(Budget.Retention(retention), isRetention: true);

    public static FileBudget Tokens(int tokensPerHead) => new(Budget.Tokens(tokensPerHead));

    public static FileBudget WholeFile(long bytes) => new(Budget.Bytes(bytes), bytes);

    /// <summary>Budgets of one layer's sequences.</summary>
    public Budget[] Of(int layers, IReadOnlyList<int> cuSeqlens) => _bytes is { } bytes
        ? Budget.SplitBytes(bytes, layers, cuSeqlens)
        : [.. Enumerable.Repeat(_budget, cuSeqlens.Count - 1)];

    public override string ToString() => _budget.ToString();
}
