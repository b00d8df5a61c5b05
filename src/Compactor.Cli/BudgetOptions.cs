using System.CommandLine;
using System.CommandLine.Parsing;

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

    /// <exception cref="UsageException">More than one of the options is given.</exception>
    public FileBudget Read(SymbolResult result)
    {
        string[] given = [.. new Option[] { _retention, _tokens, _bytes }.Where(option => result.GetResult(option) is not null).Select(option => option.Name)];
        if (given.Length > 1)
            throw new UsageException($"{string.Join(" and ", given)} exclude each other; give one of them.");
        return result.GetValue(_bytes) is { } bytes ? FileBudget.WholeFile(bytes)
            : result.GetValue(_tokens) is { } tokens ? FileBudget.Tokens(tokens)
            : FileBudget.Retention(result.GetValue(_retention) ?? DefaultRetention);
    }
}
