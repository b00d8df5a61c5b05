using System.CommandLine;
using Compactor.Bench;
using Compactor.Bench.Peers;
using Compactor.Bench.Scaling;
using Compactor.Bench.Suites;

BenchResult.Begin();
var json = BenchOptions.Json();
var repeats = BenchOptions.Count("--repeats", "Timed repeats.", 21);
var paging = new Command("paging", "Bookkeeping of the paged cache.") { repeats, json };
paging.SetAction(parsed => PagingBenchmark.Run(parsed.GetValue(repeats), parsed.GetValue(json)));

var launchCost = new Command("launch-cost", "Host time of compressing one layer on a GPU, on a device that does nothing.") { repeats, json };
launchCost.SetAction(parsed => LaunchCostBenchmark.Run(parsed.GetValue(repeats), parsed.GetValue(json)));

var threads = BenchOptions.Threads();
var model = new Option<string?>("--model") { Description = "Checkpoint in Hugging Face layout; the bundled model unless given." };
var lengths = new Option<int[]>("--tokens") { Description = "Tokens of a context, one or more numbers; 512, 1024 and 2048, as far as the model has positions, unless given.", AllowMultipleArgumentsPerToken = true };
var rounds = BenchOptions.Count("--repeats", "Timed repeats.", 11);
var host = new Command("host", "End to end on the host engine: time to the first token, blocks, decoding speed, at several retentions and with the full cache.") { model, lengths, rounds, threads, json };
host.SetAction(parsed => HostBenchmark.Run(parsed.GetValue(model), parsed.GetValue(lengths) ?? [], parsed.GetValue(rounds), parsed.GetValue(threads), parsed.GetValue(json)));

var capacity = new Command("capacity", "Sequences of 32K tokens that a paged cache admits in the memory of a device beside a model's weights.") { json };
capacity.SetAction(parsed => CapacityBenchmark.Run(parsed.GetValue(json)));

var command = new RootCommand("Benchmarks of Compactor.Native.") { PeerCommand.New(), ScalingBenchmark.NewCommand(), SuiteCommand.New(), paging, launchCost, host, capacity }.Parse(args);
foreach (var error in command.Errors)
    Console.Error.WriteLine(error.Message);
return command.Errors.Count > 0 ? 1 : command.Invoke();
