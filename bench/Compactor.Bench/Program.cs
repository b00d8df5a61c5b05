using System.CommandLine;
using BenchmarkDotNet.Running;
using Compactor.Bench;

var tokens = new Option<int>("--tokens") { Description = "Tokens N, a multiple of 256.", DefaultValueFactory = _ => 8192 };
var pairs = new Option<int>("--pairs") { Description = "Alternating pairs to time.", DefaultValueFactory = _ => 10 };
var threads = new Option<int>("--threads") { Description = "Threads of the library.", DefaultValueFactory = _ => 2 };
var python = new Option<string>("--python") { Description = "Python with PyTorch.", DefaultValueFactory = _ => "/usr/bin/python3" };
var json = new Option<string?>("--json") { Description = "Write the result to this file." };
var peers = new Command("peers", "Scores of one layer against the same formula in PyTorch, in alternating pairs.") { tokens, pairs, threads, python, json };
peers.SetAction(parsed => PeerComparison.Run(parsed.GetValue(tokens), parsed.GetValue(pairs), parsed.GetValue(threads), parsed.GetValue(python)!, parsed.GetValue(json)));

var rest = new Argument<string[]>("arguments") { Description = "Arguments of BenchmarkDotNet (--job short, --filter ...)." };
var stages = new Command("stages", "BenchmarkDotNet suites of every CPU stage.") { rest };
stages.TreatUnmatchedTokensAsErrors = false;
stages.SetAction(parsed =>
{
    BenchmarkSwitcher.FromAssembly(typeof(StageBenchmarks).Assembly).Run([.. parsed.GetValue(rest) ?? [], .. parsed.UnmatchedTokens]);
});

return new RootCommand("Benchmarks of Compactor.Native.") { peers, stages }.Parse(args).Invoke();
