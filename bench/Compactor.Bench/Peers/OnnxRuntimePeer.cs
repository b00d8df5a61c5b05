using System.Diagnostics;
using System.Text.Json.Nodes;
using Microsoft.ML.OnnxRuntime;

namespace Compactor.Bench.Peers;

/// <summary>ONNX Runtime in this process, on graphs of standard operators that PyTorch's exporter writes.</summary>
internal sealed class OnnxRuntimePeer : Peer
{
    /// <summary>A way that takes so many times the fastest's is not timed again.</summary>
    private const double Hopeless = 2;

    /// <summary>Timed runs of a way that may be the fastest; their median counts.</summary>
    private const int TuneRuns = 5;

    private readonly string[] _graphs;
    private readonly int[] _threads;
    private readonly Dictionary<string, PeerInput> _inputs;
    private readonly RunOptions _options = new();
    private readonly List<OrtValue> _values = [];
    private InferenceSession? _session;

    /// <param name="exporter">Writes the graphs into the folder.</param>
    /// <param name="folder">The subject's inputs.</param>
    /// <param name="subject">Must have a graph.</param>
    /// <param name="threads">As many as the library has; one is tried too.</param>
    public OnnxRuntimePeer(PyTorchPeer exporter, PeerFolder folder, Subject subject, int threads)
    {
        _threads = [.. new[] { 1, threads }.Distinct()];
        exporter.ExportGraphs();
        _graphs = [.. Directory.GetFiles(folder.Path, "*.onnx").Order(StringComparer.Ordinal)];
        _inputs = subject.Inputs.ToDictionary(input => input.Name);
    }

    public override string Name => "ONNX Runtime";

    public override JsonObject Tune()
    {
        var (best, threads, chosen) = (double.PositiveInfinity, 0, "");
        var timings = new JsonArray();
        foreach (int count in _threads)
            foreach (string graph in _graphs)
            {
                Open(graph, count);
                // the first runs get memory that later ones keep
                Seconds();
                Seconds();
                var runs = new List<double> { Turn(), Turn() };
                while (runs.Count < TuneRuns && runs.Min() < Hopeless * best)
                    runs.Add(Turn());
                double took = BenchResult.Median(runs);
                timings.Add(new JsonObject { ["seconds"] = took, ["threads"] = count, ["variant"] = Path.GetFileNameWithoutExtension(graph) });
                if (took < best)
                    (best, threads, chosen) = (took, count, graph);
            }
        Open(chosen, threads);
        return new() { ["version"] = OrtEnv.Instance().GetVersionString(), ["threads"] = threads, ["variant"] = Path.GetFileNameWithoutExtension(chosen), ["seconds"] = best, ["timings"] = timings };
    }

    public override double Seconds()
    {
        long start = Stopwatch.GetTimestamp();
        using var outputs = Run();
        return Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    public override float[] Outputs()
    {
        using var outputs = Run();
        return [.. outputs.SelectMany(output => output.GetTensorTypeAndShape().ElementDataType == Microsoft.ML.OnnxRuntime.Tensors.TensorElementType.Int64
            ? output.GetTensorDataAsSpan<long>().ToArray().Select(x => (float)x) : output.GetTensorDataAsSpan<float>().ToArray())];
    }

    private IDisposableReadOnlyCollection<OrtValue> Run() => _session!.Run(_options, [.. _session.InputMetadata.Keys], _values, [.. _session.OutputMetadata.Keys]);

    /// <summary>Inputs are read where the library reads them.</summary>
    private void Open(string graph, int threads)
    {
        Close();
        using var options = new SessionOptions { IntraOpNumThreads = threads, InterOpNumThreads = 1, GraphOptimizationLevel = GraphOptimizationLevel.ORT_ENABLE_ALL };
        // its threads wait busily within a run, not after it into somebody else's turn
        options.AddSessionConfigEntry("session.force_spinning_stop", "1");
        _session = new InferenceSession(graph, options);
        foreach (var (name, metadata) in _session.InputMetadata)
        {
            var input = _inputs[name];
            long[] dims = [.. metadata.Dimensions.Select(d => (long)d)];
            _values.Add(input.IsIndex ? OrtValue.CreateTensorValueFromMemory(Whole(input), dims)
                : OrtValue.CreateTensorValueWithData(OrtMemoryInfo.DefaultInstance, Microsoft.ML.OnnxRuntime.Tensors.TensorElementType.Float, dims, input.Address, input.Length * sizeof(float)));
        }
    }

    private static unsafe long[] Whole(PeerInput input)
    {
        var whole = new long[input.Length];
        for (int i = 0; i < whole.Length; i++)
            whole[i] = (long)((float*)input.Address)[i];
        return whole;
    }

    private void Close()
    {
        _values.ForEach(value => value.Dispose());
        _values.Clear();
        _session?.Dispose();
    }

    public override void Dispose()
    {
        Close();
        _options.Dispose();
    }
}
