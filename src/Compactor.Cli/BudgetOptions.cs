using System.CommandLine;
using System.CommandLine.Parsing;
using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>How much is kept: one of <c>--retention</c>, <c>--tokens</c> and <c>--bytes</c>.</summary>
internal sealed class BudgetOptions
{
    private const double DefaultRetention = 0.5;

    private readonly Option<double?> _retention = ValueOption.Number<double>("--retention", "Share of the tokens to keep, 0 to 1. [default: 0.5]", "r");
    private readonly Option<int?> _tokens = ValueOption.Number<int>("--tokens", "Tokens a head to keep, protected ones included.");
    private readonly Option<long?> _bytes = ValueOption.Number<long>("--bytes", "Bytes of keys and values to keep in the whole file: even over layers, by length over sequences.");

    public void AddTo(Command command)
    {
        command.Add(_retention);
        command.Add(_tokens);
        command.Add(_bytes);
    }

    /// <summary>What is wrong with the combination, or null.</summary>
    public string? Conflict(SymbolResult result)
    {
        string[] given = [.. new Option[] { _retention, _tokens, _bytes }.Where(o => result.GetResult(o) is { Implicit: false }).Select(o => o.Name)];
        return given.Length > 1 ? $"{string.Join(" and ", given)} exclude each other; give one of them." : null;
    }

    /// <summary>The budget, checked.</summary>
    public FileBudget Read(SymbolResult result) =>
        result.GetValue(_bytes) is { } bytes ? new FileBudget(Budget.Bytes(bytes), bytes)
        : result.GetValue(_tokens) is { } tokens ? new FileBudget(Budget.Tokens(tokens), null)
        : new FileBudget(Budget.Retention(result.GetValue(_retention) ?? DefaultRetention), null);
}
