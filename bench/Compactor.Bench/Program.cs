using System.CommandLine;
using Compactor.Bench;
using Compactor.Bench.Peers;
using Compactor.Bench.Scaling;
using Compactor.Bench.Suites;

var json = new Option<string?>("--json") { Description = "Write the result to this file." };
var repeats = new Option<int>("--repeats") { Description = "Timed repeats.", DefaultValueFactory = _ => 21 };
var paging = new Command("paging", "Bookkeeping of the paged cache.") { repeats, json };
paging.SetAction(parsed => PagingBenchmark.Run(parsed.GetValue(repeats), parsed.GetValue(json)));

var launchCost = new Command("launch-cost", "Host time of compressing one layer on a GPU, on a device that does nothing.") { repeats, json };
launchCost.SetAction(parsed => LaunchCostBenchmark.Run(parsed.GetValue(repeats), parsed.GetValue(json)));

return new RootCommand("Benchmarks of Compactor.Native.") { PeerCommand.New(), ScalingBenchmark.NewCommand(), SuiteCommand.New(), paging, launchCost }.Parse(args).Invoke();
