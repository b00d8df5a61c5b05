using System.CommandLine;
using BenchmarkDotNet.Running;
using Compactor.Bench;

var pairs = new Option<int>("--pairs") { Description = "Alternating pairs to time.", DefaultValueFactory = _ => 10 };
var threads = new Option<int>("--threads") { Description = "Threads of the library.", DefaultValueFactory = _ => 2 };
var python = new Option<string>("--python") { Description = "Python with PyTorch.", DefaultValueFactory = _ => "/usr/bin/python3" };
var json = new Option<string?>("--json") { Description = "Write the result to this file." };

var tokens = new Option<int>("--tokens") { Description = "Tokens N, a multiple of 256.", DefaultValueFactory = _ => 8192 };
var scores = new Command("scores", "Scores of one layer against the same formula in PyTorch, in alternating pairs.") { tokens, pairs, threads, python, json };
scores.SetAction(parsed => ScoresPeer.Run(parsed.GetValue(tokens), parsed.GetValue(pairs), parsed.GetValue(threads), parsed.GetValue(python)!, parsed.GetValue(json)));

var kept = new Option<int>("--tokens") { Description = "Kept tokens of a head, a multiple of 128.", DefaultValueFactory = _ => 4096 };
var sequences = new Option<int>("--sequences") { Description = "Sequences of the batch.", DefaultValueFactory = _ => 4 };
var decode = new Command("decode", "Decode attention over paged survivors against PyTorch over a dense cache, in alternating pairs.") { kept, sequences, pairs, threads, python, json };
decode.SetAction(parsed => DecodePeer.Run(parsed.GetValue(kept), parsed.GetValue(sequences), parsed.GetValue(pairs), parsed.GetValue(threads), parsed.GetValue(python)!, parsed.GetValue(json)));

var repeats = new Option<int>("--repeats") { Description = "Timed repeats.", DefaultValueFactory = _ => 21 };
var paging = new Command("paging", "Bookkeeping of the paged cache.") { repeats, json };
paging.SetAction(parsed => PagingBenchmark.Run(parsed.GetValue(repeats), parsed.GetValue(json)));

var launchCost = new Command("launch-cost", "Host time of compressing one layer on a GPU, on a device that does nothing.") { repeats, json };
launchCost.SetAction(parsed => LaunchCostBenchmark.Run(parsed.GetValue(repeats), parsed.GetValue(json)));

var model = new Option<string?>("--model") { Description = "Checkpoint in Hugging Face layout; the bundled model unless given." };
var lengths = new Option<int[]>("--tokens") { Description = "Tokens of a context, one or more numbers; 512, 1024 and 2048, as far as the model has positions, unless given.", AllowMultipleArgumentsPerToken = true };
var rounds = new Option<int>("--repeats") { Description = "Timed repeats.", DefaultValueFactory = _ => 11 };
var host = new Command("host", "End to end on the host engine: time to the first token, blocks, decoding speed, at several retentions and with the full cache.") { model, lengths, rounds, threads, json };
host.SetAction(parsed => HostBenchmark.Run(parsed.GetValue(model), parsed.GetValue(lengths) ?? [], parsed.GetValue(rounds), parsed.GetValue(threads), parsed.GetValue(json)));

var capacity = new Command("capacity", "Sequences of 32K tokens that a paged cache admits in the memory of a device beside a model's weights.") { json };
capacity.SetAction(parsed => CapacityBenchmark.Run(parsed.GetValue(json)));

var stages = new Command("stages", "BenchmarkDotNet suites of every CPU stage; its own arguments follow.") { TreatUnmatchedTokensAsErrors = false };
stages.SetAction(parsed =>
{
    BenchmarkSwitcher.FromAssembly(typeof(StageBenchmarks).Assembly).Run([.. parsed.UnmatchedTokens]);
});

return new RootCommand("Benchmarks of Compactor.Native.") { scores, decode, paging, launchCost, host, capacity, stages }.Parse(args).Invoke();
