using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>The budget of a whole file.</summary>
/// <param name="Budget">The budget; of the whole file when it is in bytes, else of each sequence of each layer.</param>
/// <param name="Bytes">Bytes of the whole file, when the budget is in bytes.</param>
internal sealed record FileBudget(Budget Budget, long? Bytes)
{
    /// <summary>Budgets of one layer's sequences.</summary>
    public Budget[] Of(int layers, IReadOnlyList<int> cuSeqlens) => Bytes is { } bytes
        ? Budget.SplitBytes(bytes, layers, cuSeqlens)
        : [.. Enumerable.Repeat(Budget, cuSeqlens.Count - 1)];

    public override string ToString() => Bytes is null ? Budget.ToString() : $"{Bytes} bytes";
}
