using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public class BudgetTests
{
    private static readonly CompressionOptions Paper = CompressionPresets.Paper, KvPress = CompressionPresets.KvPress, Vllm = CompressionPresets.CompactorVllm;

    private static long Count(Budget budget, CompressionOptions options, int tokens, int heads, long bytesPerPair = 256) =>
        budget.Count(options, tokens, heads, bytesPerPair);

    [Fact]
    public void Presets_round_as_they_state()
    {
        Assert.Equal((251 + 20) * 8, Count(Budget.Retention(0.25), Paper, 1001, 8));
        Assert.Equal(250 * 8, Count(Budget.Retention(0.25), KvPress, 1001, 8));
        Assert.Equal(1842, Count(Budget.Retention(0.25), Vllm, 1001, 8));
        Assert.Equal(230 * 8, Count(Budget.Retention(0.25), Vllm with { SelectionScope = SelectionScope.Head }, 1001, 8));
    }

    [Fact]
    public void Counts_are_not_thrown_by_binary_fractions()
    {
        Assert.Equal(300 + 20, Count(Budget.Retention(0.3), Paper, 1000, 1));
        Assert.Equal(290, Count(Budget.Retention(0.29), KvPress, 1000, 1));
        Assert.Equal(700, Count(Budget.Retention(0.7), KvPress, 1000, 1));
        // 0.15 · 90 = 13.5, 0.05 · 290 = 14.5: halves to even, whatever side the double falls on.
        Assert.Equal(14, Count(Budget.Retention(0.15), Vllm with { ProtectFirst = 0, ProtectLast = 0 }, 90, 1));
        Assert.Equal(14, Count(Budget.Retention(0.05), Vllm with { ProtectFirst = 0, ProtectLast = 0 }, 290, 1));
    }

    [Fact]
    public void A_budget_below_the_protected_tokens_is_raised_to_them()
    {
        Assert.Equal(80 * 4, Count(Budget.Retention(0.01), Vllm, 500, 4));
        Assert.Equal(12 * 4, Count(Budget.Tokens(3), KvPress, 500, 4));
        Assert.Equal(20 * 4, Count(Budget.Retention(0), Paper, 500, 4));
    }

    [Fact]
    public void Sequences_no_longer_than_the_protected_tokens_are_kept_whole()
    {
        Assert.Equal(80 * 2, Count(Budget.Retention(0.1), Vllm, 80, 2));
        Assert.Equal(5 * 2, Count(Budget.Retention(0.1), Paper, 5, 2));
        Assert.Equal(0, Count(Budget.Retention(0.1), Paper, 0, 2));
    }

    [Fact]
    public void Token_and_byte_budgets_include_protected_tokens()
    {
        Assert.Equal(100 * 2, Count(Budget.Tokens(100), Paper, 1000, 2));
        Assert.Equal(1000 * 2, Count(Budget.Tokens(5000), Paper, 1000, 2));
        Assert.Equal(100, Count(Budget.Bytes(100 * 256 + 255), Paper, 1000, 2));
        Assert.Equal(98, Count(Budget.Bytes(99 * 256), Paper with { SelectionScope = SelectionScope.Head }, 1000, 2));
    }

    [Fact]
    public void Budgets_that_cannot_be_met_say_what_to_do()
    {
        var bytes = Assert.Throws<CompactorException>(() => Count(Budget.Bytes(256), Paper, 1000, 2));
        Assert.Equal(CompactorStatus.BudgetNotMet, bytes.Status);
        Assert.Contains("take 10240 bytes; raise the budget", bytes.Message);
        var tokens = Assert.Throws<CompactorException>(() => Count(Budget.Tokens(10), Paper with { MinTokensPerHead = 50 }, 1000, 2));
        Assert.Equal(CompactorStatus.BudgetNotMet, tokens.Status);
        Assert.Contains("lower the minimum", tokens.Message);
    }

    [Theory]
    [InlineData(-0.1)]
    [InlineData(1.1)]
    [InlineData(double.NaN)]
    public void Ratios_outside_0_to_1_are_refused(double retention) =>
        Assert.Contains("use a ratio from 0 to 1", Assert.Throws<CompactorException>(() => Budget.Retention(retention)).Message);

    [Fact]
    public void Empty_budgets_are_refused()
    {
        Assert.Throws<CompactorException>(() => Budget.Tokens(0));
        Assert.Throws<CompactorException>(() => Budget.Bytes(0));
    }
}
