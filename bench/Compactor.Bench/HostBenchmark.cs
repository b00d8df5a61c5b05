using System.Diagnostics;
using System.Globalization;
using System.Text.Json.Nodes;
using Compactor.Host;
using Compactor.Host.Evaluation;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench;

/// <summary>
/// End to end on the host engine: a text is read, its cache compressed layer by layer, and tokens are decoded from what is left. Beside it the full cache, into which tokens are stored
/// and nothing is scored. What compression adds is timed by itself, on activations kept: all that it does, less storing every token. All ways take turns within a repeat, in an order drawn anew.
/// </summary>
internal static class HostBenchmark
{
    private const int DecodedTokens = 64, BlockSize = 128, WarmUps = 3, Seed = 1;

    private static readonly int[] s_lengths = [512, 1024, 2048];

    /// <summary>A way to hold the cache; <paramref name="Retention"/> is null for the full cache without compression.</summary>
    private sealed record Way(string Name, double? Retention);

    private static readonly Way[] s_ways =
        [new("full cache", null), .. ((double[])[1, 0.5, 0.25, 0.1]).Select(retention => new Way(string.Create(CultureInfo.InvariantCulture, $"retention {retention}"), retention))];

    /// <param name="CompressionMilliseconds">Of all layers, from activations kept: scores, selection, and storing survivors; storing alone at retention 1. Nothing of the full cache.</param>
    /// <param name="FirstTokenMilliseconds">From the prompt to the logits of the first new token.</param>
    /// <param name="TokensPerSecond">Of decoding, which follows.</param>
    /// <param name="PeakBlocks">Blocks in use at the most before decoding.</param>
    /// <param name="HeldBlocks">Blocks in use before decoding.</param>
    /// <param name="CacheBytes">Bytes of these: keys, values and positions.</param>
    /// <param name="Pairs">(token, head) pairs in them.</param>
    /// <param name="Tokens">Tokens decoded.</param>
    private sealed record Outcome(double CompressionMilliseconds, double FirstTokenMilliseconds, double TokensPerSecond, long PeakBlocks, long HeldBlocks, long CacheBytes, long Pairs, int[] Tokens);

    /// <returns>An exit code: 1 where a length does not fit the model, or the results of two ways or repeats that must agree do not.</returns>
    public static int Run(string? folder, int[] lengths, int repeats, int threads, string? json)
    {
        try
        {
            Execute(folder ?? Path.Combine(AppContext.BaseDirectory, "Models", "needle"), lengths, repeats, threads, json);
            return 0;
        }
        catch (CompactorException failure)
        {
            Console.Error.WriteLine(failure.Message);
            return 1;
        }
    }

    private static void Execute(string folder, int[] lengths, int repeats, int threads, string? json)
    {
        using var backend = new CpuBackend(threads);
        using var model = LlamaModel.Load(folder);
        var config = model.Config;
        int most = config.MaxPositions - DecodedTokens;
        if (most < BlockSize)
            throw Refused($"{model.Name} has {config.MaxPositions} positions; use a model with {BlockSize + DecodedTokens} or more.");
        lengths = [.. lengths.Distinct()];
        foreach (int length in lengths)
            if (length < BlockSize || length > most)
                throw Refused($"--tokens is {length}; {model.Name} has {config.MaxPositions} positions, {DecodedTokens} of them for decoding: use {BlockSize} to {most}.");
        if (lengths.Length == 0)
        {
            lengths = [.. s_lengths.Select(length => Math.Min(length, most)).Distinct()];
            if (lengths[^1] < s_lengths[^1])
                Console.Error.WriteLine(
                    $"{model.Name} has {config.MaxPositions} positions, {DecodedTokens} of them for decoding: contexts of {string.Join(", ", lengths)} tokens instead of {string.Join(", ", s_lengths)}");
        }
        var text = TextTokenizer.Load(folder);
        Console.WriteLine($"{model.Name}, {backend.Description}; blocks of {BlockSize}, {DecodedTokens} tokens decoded, medians of {repeats}");
        var contexts = new JsonObject();
        foreach (int length in lengths)
            contexts[$"{length} tokens"] = Report(Measure(model, backend, Prompt(text, length), repeats), length);
        if (json is null)
            return;
        var result = BenchResult.New($"end to end on the host engine: {model.Name}");
        result["dimensions"] = new JsonObject
        {
            ["layers"] = config.Layers,
            ["query_heads"] = config.QueryHeads,
            ["kv_heads"] = config.KvHeads,
            ["head_dim"] = config.HeadDim,
            ["block_size"] = BlockSize,
            ["decoded_tokens"] = DecodedTokens,
        };
        (result["threads"], result["simd_bits"]) = (backend.Threads, (int)backend.Width);
        (result["repeats"], result["warmup_repeats"], result["seed"]) = (repeats, WarmUps, Seed);
        result["contexts"] = contexts;
        BenchResult.Save(result, json);
    }

    /// <summary>A text that retrieval is tried on, of exactly this many tokens.</summary>
    private static int[] Prompt(TextTokenizer text, int length)
    {
        string context = RetrievalTask.Named("multi-key").Create(2 * length + 2 * BlockSize, Seed, sentence => text.Encode(sentence).Length).Context;
        int[] tokens = [.. text.Begin, .. text.Encode(context)];
        return tokens.Length >= length ? tokens[..length] : throw new InvalidOperationException($"A text of {tokens.Length} tokens was made; {length} are needed.");
    }

    /// <summary>Outcomes of each way by repeat.</summary>
    /// <exception cref="CompactorException">Retention 1 and the full cache decode different tokens, or two repeats do.</exception>
    private static Dictionary<Way, List<Outcome>> Measure(LlamaModel model, CpuBackend backend, int[] prompt, int repeats)
    {
        using var meter = new PoolMeter();
        using var engine = new Engine(model, backend, prompt.Length + DecodedTokens, BlockSize);
        using var prefill = engine.Prefill(prompt);
        var expected = s_ways.ToDictionary(way => way, way => Once(engine, meter, prompt, prefill, way));
        var (full, everything) = (expected[s_ways[0]].Tokens, expected[s_ways[1]].Tokens);
        if (!full.SequenceEqual(everything))
            throw Refused($"Of {prompt.Length} tokens, retention 1 decodes other tokens than the full cache, from token {full.Zip(everything).TakeWhile(pair => pair.First == pair.Second).Count()} on; nothing was timed.");
        var random = new Random(Seed);
        var outcomes = s_ways.ToDictionary(way => way, _ => new List<Outcome>());
        for (int repeat = -WarmUps; repeat < repeats; repeat++)
        {
            Console.Error.WriteLine(repeat < 0 ? $"{prompt.Length} tokens: warming up, {-repeat} to go" : $"{prompt.Length} tokens: repeat {repeat + 1} of {repeats}");
            var order = s_ways.ToArray();
            random.Shuffle(order);
            foreach (var way in order)
            {
                var outcome = Once(engine, meter, prompt, prefill, way);
                if (!outcome.Tokens.SequenceEqual(expected[way].Tokens) || (outcome.PeakBlocks, outcome.HeldBlocks, outcome.Pairs) != (expected[way].PeakBlocks, expected[way].HeldBlocks, expected[way].Pairs))
                    throw Refused($"Of {prompt.Length} tokens, {way.Name} decodes other tokens, or takes other blocks, than before.");
                if (repeat >= 0)
                    outcomes[way].Add(outcome);
            }
        }
        return outcomes;
    }

    private static Outcome Once(Engine engine, PoolMeter meter, int[] prompt, Prefill prefill, Way way)
    {
        long start = Stopwatch.GetTimestamp();
        if (way.Retention is { } kept)
            prefill.Compress(Budget.Retention(kept)).Dispose();
        double compression = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        meter.Restart();
        start = Stopwatch.GetTimestamp();
        using var context = way.Retention is { } retention ? engine.PrefillCompressed([prompt], Budget.Retention(retention))[0] : Store(engine, prompt);
        double firstToken = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        var (peak, held, pairs) = (meter.Peak, meter.Used, context.Pairs);
        if (held != engine.Cache.Blocks - engine.Cache.FreeBlocks)
            throw new InvalidOperationException($"The pool's meter counts {held} blocks in use; the pool has {engine.Cache.Blocks - engine.Cache.FreeBlocks}.");
        var generation = new Generation(new GenerationOptions { MaxTokens = DecodedTokens });
        start = Stopwatch.GetTimestamp();
        int[] tokens = generation.Run([context])[0];
        return new Outcome(compression, firstToken, DecodedTokens / Stopwatch.GetElapsedTime(start).TotalSeconds, peak, held, held * (engine.Cache.Options.BlockBytes + BlockSize * sizeof(int)), pairs, tokens);
    }

    /// <summary>What <see cref="Engine.PrefillCompressed"/> does, with each layer's tokens stored as they are.</summary>
    private static Context Store(Engine engine, int[] prompt)
    {
        var batch = new TokenBatch([prompt], [0], null);
        var sequences = engine.NewSequences(1);
        using var activations = new LayerActivations(engine.Backend, engine.Model.Config, prompt.Length);
        using var residual = engine.Forward.Run(batch, _ => activations, (layer, done) => sequences[0].Store(layer, done.Inputs.Key, done.Inputs.Value, 0, prompt.Length, 0));
        return engine.NewContexts(batch, sequences, residual.View)[0];
    }

    private static CompactorException Refused(string message) => new(CompactorStatus.InvalidArgument, message);

    private static JsonObject Report(Dictionary<Way, List<Outcome>> outcomes, int length)
    {
        var ways = new JsonObject();
        var (full, stored) = (outcomes[s_ways[0]], outcomes[s_ways[1]]);
        double prefill = BenchResult.Median([.. full.Select(outcome => outcome.FirstTokenMilliseconds)]), speed = BenchResult.Median([.. full.Select(outcome => outcome.TokensPerSecond)]);
        Console.WriteLine();
        Console.WriteLine($"{length + " tokens",-16} {"first token",12} {"compression adds",22} {"pairs kept",12} {"peak blocks",12} {"held blocks",12} {"cache",10} {"decoding",22}");
        foreach (var (way, runs) in outcomes)
        {
            double[] firstToken = [.. runs.Select(run => run.FirstTokenMilliseconds)], tokensPerSecond = [.. runs.Select(run => run.TokensPerSecond)];
            var (time, rate) = (BenchResult.Median(firstToken), BenchResult.Median(tokensPerSecond));
            var (peak, held, bytes, pairs) = (runs[0].PeakBlocks, runs[0].HeldBlocks, runs[0].CacheBytes, runs[0].Pairs);
            var measured = new JsonObject
            {
                ["kept_pairs"] = pairs,
                ["peak_blocks"] = peak,
                ["held_blocks"] = held,
                ["cache_bytes"] = bytes,
                ["median_first_token_milliseconds"] = time,
                ["median_tokens_per_second"] = rate,
                ["first_token_milliseconds"] = BenchResult.Values(firstToken),
                ["tokens_per_second"] = BenchResult.Values(tokensPerSecond),
            };
            string adds = "";
            if (way.Retention is not null)
            {
                double added = BenchResult.Median([.. runs.Zip(stored, (mine, store) => mine.CompressionMilliseconds - store.CompressionMilliseconds)]);
                adds = runs == stored ? "" : string.Create(CultureInfo.InvariantCulture, $"{added:F2} ms ({added / prefill:P1})");
                measured["median_added_milliseconds"] = added;
                measured["compression_milliseconds"] = BenchResult.Values(runs.Select(run => run.CompressionMilliseconds));
            }
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{way.Name,-16} {time,9:F1} ms {adds,22} {pairs,12:N0} {peak,12:N0} {held,12:N0} {bytes / 1e6,7:F2} MB {$"{rate:F0} tokens/s ({rate / speed:F2}x)",22}"));
            ways[way.Name] = measured;
        }
        return ways;
    }
}
