using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench.Peers;

/// <summary>Stages of the reference layer as subjects: float32, Hq 32, Hkv 8, D 128.</summary>
internal static class LayerSubjects
{
    private const string Script = "pytorch_layer.py";

    public static Subject Scores(CpuBackend backend, int tokens, string preset)
    {
        var (layer, stages) = Make(backend, tokens, CompressionPresets.ByName[preset]);
        var phi = Phi(backend, stages);
        return new($"scores, {preset} preset, float32, N {tokens}", Dimensions("scores", layer, stages),
            [PeerInput.Of("key_pre_rope", layer.Inputs.KeyPreRope!.Value), PeerInput.Of("query", layer.Inputs.Query!.Value), PeerInput.Of("key", layer.Inputs.Key), PeerInput.Of("value", layer.Inputs.Value), PeerInput.Of("phi", phi.View)],
            stages.Scores, () => stages.FusedScores.View.AsSpan().ToArray(), 1e-4, Script, HasOnnxGraph: false, stages, phi, layer);
    }

    public static Subject Leverage(CpuBackend backend, int tokens, int chunk)
    {
        var (layer, stages) = Make(backend, tokens, CompressionPresets.Paper with { LeverageChunk = chunk });
        var phi = Phi(backend, stages);
        return new($"leverage, {(chunk == 0 ? "whole sequence" : $"chunk {chunk}")}, float32, N {tokens}", Dimensions("leverage", layer, stages),
            [PeerInput.Of("key_pre_rope", layer.Inputs.KeyPreRope!.Value), PeerInput.Of("phi", phi.View)],
            stages.Leverage, () => stages.LeverageScores.View.AsSpan().ToArray(), 1e-4, Script, HasOnnxGraph: false, stages, phi, layer);
    }

    public static Subject Attention(CpuBackend backend, int tokens)
    {
        var (layer, stages) = Make(backend, tokens, CompressionPresets.Paper);
        return new($"attention scores, C {stages.Plan.Options.AttentionChunk}, float32, N {tokens}", Dimensions("attention", layer, stages),
            [PeerInput.Of("query", layer.Inputs.Query!.Value), PeerInput.Of("key", layer.Inputs.Key)],
            stages.Attention, () => stages.AttentionScores.View.AsSpan().ToArray(), 1e-4, Script, HasOnnxGraph: true, stages, layer);
    }

    public static Subject Select(CpuBackend backend, int tokens)
    {
        var (layer, stages) = Make(backend, tokens, CompressionPresets.Paper);
        stages.Scores();
        return new($"select, sequence scope, r 0.5, float32, N {tokens}", Dimensions("select", layer, stages), [PeerInput.Of("scores", stages.FusedScores.View)],
            stages.Select, stages.KeptPairs, 0, Script, HasOnnxGraph: true, stages, layer);
    }

    public static Subject Compact(CpuBackend backend, int tokens)
    {
        var (layer, stages) = Make(backend, tokens, CompressionPresets.Paper);
        stages.Scores();
        stages.Select();
        var rows = backend.Allocate<float>(stages.Plan.KeptPairs);
        float[] pairs = stages.KeptPairs();
        for (int i = 0; i < pairs.Length; i++)
            rows.View.AsSpan()[i] = (int)pairs[i] % tokens * layer.Shape.KvHeads + (int)pairs[i] / tokens;
        return new($"compact keys and values, r 0.5, float32, N {tokens}", Dimensions("compact", layer, stages),
            [PeerInput.Of("key", layer.Inputs.Key), PeerInput.Of("value", layer.Inputs.Value), PeerInput.Of("rows", rows.View, isIndex: true)],
            stages.Compact, () => [.. MemoryMarshal.Cast<byte, float>(stages.KeptKeys.View.AsSpan()), .. MemoryMarshal.Cast<byte, float>(stages.KeptValues.View.AsSpan())],
            0, Script, HasOnnxGraph: true, stages, rows, layer);
    }

    private static (BenchLayer, LayerStages) Make(CpuBackend backend, int tokens, CompressionOptions options)
    {
        var layer = new BenchLayer(backend, tokens);
        return (layer, new LayerStages(backend, layer, options));
    }

    /// <summary>All distinct Phi, one after the other.</summary>
    private static BackendBuffer<float> Phi(CpuBackend backend, LayerStages stages)
    {
        float[] phi = [.. Enumerable.Range(0, stages.Sketch.Count).SelectMany(index => stages.Sketch.At(index).ToArray())];
        var buffer = backend.Allocate<float>(phi.Length);
        phi.CopyTo(buffer.View.AsSpan());
        return buffer;
    }

    private static JsonObject Dimensions(string stage, BenchLayer layer, LayerStages stages)
    {
        var (shape, options, scored) = (layer.Shape, stages.Plan.Options, stages.Plan.ScoredTokens(0));
        return new()
        {
            ["stage"] = stage,
            ["tokens"] = shape.Tokens,
            ["query_heads"] = shape.QueryHeads,
            ["kv_heads"] = shape.KvHeads,
            ["head_dim"] = shape.HeadDim,
            ["sketch"] = options.SketchDimension,
            ["leverage_chunk"] = options.LeverageChunk,
            ["epsilon"] = options.Epsilon,
            ["leverage_scope"] = Name(options.LeverageScope),
            ["attention_chunk"] = options.AttentionChunk,
            ["group_mean"] = options.GroupReduction == GroupReduction.Mean,
            ["value_norm"] = options.WeightByValueNorm,
            ["pool"] = options.PoolWidth,
            ["attention_scope"] = Name(options.AttentionScope),
            ["unbiased"] = options.UnbiasedStandardDeviation,
            ["std_floor"] = options.StandardDeviationFloor,
            ["lambda"] = stages.Plan.LeverageWeightOf(0),
            ["first_scored"] = scored.First,
            ["end_scored"] = scored.End,
            ["protect_first"] = options.ProtectFirst,
            ["protect_last"] = options.ProtectLast,
            ["kept"] = stages.Plan.KeptPairs,
        };

        static string Name(NormalizationScope scope) => scope.ToString().ToLowerInvariant();
    }
}
