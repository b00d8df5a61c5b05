using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench;

/// <summary>The scores of one layer, Paper preset, float32, against the same formula in PyTorch.</summary>
internal static class ScoresPeer
{
    public static int Run(int tokens, int pairs, int threads, string python, string? json)
    {
        var options = CompressionPresets.Paper;
        if (tokens < options.AttentionChunk || tokens % options.AttentionChunk != 0)
        {
            Console.Error.WriteLine($"--tokens is {tokens}; use a multiple of {options.AttentionChunk}, so that the PyTorch formula needs no padding.");
            return 1;
        }
        if (!PyTorchPeer.IsInstalled(python))
            return 1;
        using var backend = new CpuBackend(threads);
        using var layer = new BenchLayer(backend, tokens);
        var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.5));
        var sketch = Sketch.Draw(layer.Shape, options);
        float[] phi = sketch.Of(0, 0).ToArray();
        var pinned = GCHandle.Alloc(phi, GCHandleType.Pinned);
        var dimensions = new JsonObject
        {
            ["tokens"] = tokens,
            ["query_heads"] = layer.Shape.QueryHeads,
            ["kv_heads"] = layer.Shape.KvHeads,
            ["head_dim"] = layer.Shape.HeadDim,
            ["sketch"] = options.SketchDimension,
            ["chunk"] = options.AttentionChunk,
            ["epsilon"] = options.Epsilon,
            ["lambda"] = options.LeverageWeight.Fixed,
            ["protect_first"] = options.ProtectFirst,
            ["protect_last"] = options.ProtectLast,
        };
        var inputs = layer.Inputs;
        using var peer = new PyTorchPeer(python, "pytorch_scores.py", dimensions,
            Input("key_pre_rope", inputs.KeyPreRope!.Value), Input("query", inputs.Query!.Value), Input("key", inputs.Key), ("phi", pinned.AddrOfPinnedObject(), phi.Length));
        pinned.Free();
        return PeerComparison.Execute(new PeerComparison.Subject($"scores of one layer, Paper preset, float32, N {tokens}", dimensions, Once, 1e-4), backend, peer, pairs, json);

        (double, float[]) Once()
        {
            using var selection = LayerCompressor.Select(backend, plan, inputs, sketch: sketch);
            var times = selection.Times;
            return ((times.Leverage + times.Attention + times.Fuse).TotalSeconds, selection.Scores!.View.AsSpan().ToArray());
        }

        static (string, nint, long) Input(string name, TensorView view) => (name, view.Address, (long)view.Tokens * view.Heads * view.Dim);
    }
}
