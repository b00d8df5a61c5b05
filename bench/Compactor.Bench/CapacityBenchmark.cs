using System.Globalization;
using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Gpu;
using Compactor.Native.Paging;

namespace Compactor.Bench;

/// <summary>
/// How many sequences of 32K tokens are in a device's memory at once, by admitting them to a paged cache until it refuses. The cache is the product's, on a device whose memory is never touched:
/// a prefill of each layer is stored whole, compacted, and what it no longer needs given back, before the next layer's.
/// </summary>
internal static class CapacityBenchmark
{
    public const int Tokens = 32_768;

    /// <summary>Share of the device's memory that a host uses: vLLM's default for gpu_memory_utilization (docs.vllm.ai, engine arguments).</summary>
    private const double Utilization = 0.9;

    private const string Assumptions =
        "Gigabytes are 10^9 bytes. A tenth of the memory is left to the host, and its activations and graphs have to fit there (vLLM leaves as much, gpu_memory_utilization 0.9, and takes its activations off the rest); " +
        "weights, the workspace of one layer's scores and its lists of survivors come off the rest, and keys, values and positions of head-blocks share what remains. " +
        "Paper preset. Survivors are spread over heads as its selection spreads those of the demo's cache (4 layers x 2 heads, 645 tokens) at the same retention, scaled to 32,768 tokens. " +
        "A layer's prefill is in the cache whole until it is compacted, one sequence and layer at a time. No room is kept for tokens to be decoded.";

    private sealed record Model(string Name, int Layers, int QueryHeads, int KvHeads, int HeadDim, double BillionParameters);

    private static readonly Model[] s_models = [new("Llama-3.1-8B", 32, 32, 8, 128, 8.03), new("Qwen2.5-14B", 48, 40, 8, 128, 14.77)];

    private static readonly int[] s_gigabytes = [80, 141], s_blockSizes = [128, 16];

    private static readonly double[] s_retentions = [1, 0.75, 0.5, 0.25, 0.1];

    private sealed record Pool(Model Model, int Gigabytes, int BlockSize, double Retention);

    /// <param name="WorkspaceBytes">Of one layer's scores and lists of survivors.</param>
    /// <param name="Blocks">Of the pool.</param>
    /// <param name="Sequences">Sequences that are in it when it refuses.</param>
    /// <param name="PerSequence">Blocks that an admitted sequence holds.</param>
    /// <param name="Peak">Blocks in use beyond those of admitted sequences, at the most, while one is admitted.</param>
    /// <param name="UnusedShare">Share of the slots of used blocks that hold no token.</param>
    private sealed record Admission(long WorkspaceBytes, int Blocks, int Sequences, int PerSequence, int Peak, double UnusedShare);

    public static int Run(string? json)
    {
        var demo = s_retentions.Where(retention => retention < 1).ToDictionary(retention => retention, KeptShares.OfDemo);
        var pools = (from model in s_models from gigabytes in s_gigabytes from blockSize in s_blockSizes from retention in s_retentions select new Pool(model, gigabytes, blockSize, retention)).ToArray();
        var admissions = new Admission[pools.Length];
        int done = 0;
        Parallel.For(0, pools.Length, i =>
        {
            admissions[i] = Admit(pools[i], demo);
            Console.Error.WriteLine($"{Interlocked.Increment(ref done)} of {pools.Length} pools filled");
        });
        Console.WriteLine($"sequences of {Tokens:N0} tokens, bfloat16, by retention; in brackets, blocks of a whole sequence over those of a compressed one");
        Console.Write($"{"model",-14} {"memory",8} {"block",6}{string.Concat(s_retentions.Select(retention => string.Create(CultureInfo.InvariantCulture, $"{retention,16}")))}");
        var results = new JsonArray();
        int whole = 0; // blocks of a sequence at retention 1, which comes first
        foreach (var (pool, admission) in pools.Zip(admissions))
        {
            if (pool.Retention == 1)
                Console.Write($"\n{pool.Model.Name,-14} {pool.Gigabytes + " GB",8} {pool.BlockSize,6}");
            whole = pool.Retention == 1 ? admission.PerSequence : whole;
            double ratio = (double)whole / admission.PerSequence;
            Console.Write(string.Create(CultureInfo.InvariantCulture, $"{$"{admission.Sequences} ({ratio:F2}x)",16}"));
            results.Add(new JsonObject
            {
                ["model"] = pool.Model.Name,
                ["memory_gigabytes"] = pool.Gigabytes,
                ["block_size"] = pool.BlockSize,
                ["retention"] = pool.Retention,
                ["workspace_bytes"] = admission.WorkspaceBytes,
                ["blocks"] = admission.Blocks,
                ["blocks_a_sequence"] = admission.PerSequence,
                ["peak_blocks_of_an_admission"] = admission.Peak,
                ["unused_slots_share"] = admission.UnusedShare,
                ["sequences"] = admission.Sequences,
                ["whole_blocks_over_these"] = ratio,
            });
        }
        Console.WriteLine($"\n{Assumptions}");
        if (json is not null)
        {
            var result = BenchResult.New("sequences of 32K tokens that a paged cache admits beside a model's weights");
            result["assumptions"] = Assumptions;
            result["sequence_tokens"] = Tokens;
            result["utilization"] = Utilization;
            result["models"] = new JsonArray([.. s_models.Select(model => new JsonObject
            {
                ["name"] = model.Name,
                ["layers"] = model.Layers,
                ["query_heads"] = model.QueryHeads,
                ["kv_heads"] = model.KvHeads,
                ["head_dim"] = model.HeadDim,
                ["weight_bytes"] = WeightBytes(model),
            })]);
            result["kept_of_demo"] = new JsonObject(demo.Select(kept => KeyValuePair.Create(kept.Key.ToString(CultureInfo.InvariantCulture), (JsonNode?)new JsonArray([.. kept.Value.Select(count => JsonValue.Create(count))]))));
            result["results"] = results;
            BenchResult.Save(result, json);
        }
        return 0;
    }

    private static long WeightBytes(Model model) => (long)Math.Round(model.BillionParameters * 1e9) * ElementType.BFloat16.Size();

    private static Admission Admit(Pool pool, Dictionary<double, int[]> demo)
    {
        var (model, gigabytes, blockSize, retention) = pool;
        var plan = new LayerPlan(new LayerShape([0, Tokens], model.QueryHeads, model.KvHeads, model.HeadDim, ElementType.BFloat16), CompressionPresets.Paper, Budget.Retention(retention));
        var driver = new SelectingDriver(plan.KeepsEverything ? [] : KeptShares.Offsets(plan, demo[retention]));
        using var backend = new GpuBackend(driver, driver.CreateStream());
        long workspace = plan.KeepsEverything ? 0 : LayerMemory.WorkspaceBytes(plan) + (plan.KeptPairs + model.KvHeads + 1) * sizeof(int);
        var options = new PagedCacheOptions { Layers = model.Layers, KvHeads = model.KvHeads, HeadDim = model.HeadDim, ElementType = ElementType.BFloat16, BlockSize = blockSize, Blocks = 0 };
        long left = (long)Math.Round(gigabytes * 1e9 * Utilization) - WeightBytes(model) - workspace;
        using var meter = new PoolMeter();
        using var cache = new PagedCache(backend, options with { Blocks = checked((int)(left / (options.BlockBytes + blockSize * sizeof(int)))) });

        TensorView Rows(int heads) => TensorView.Packed(driver.Allocate(2L * Tokens * heads * model.HeadDim, null!), ElementType.BFloat16, Tokens, heads, model.HeadDim);
        var inputs = new LayerInputs { Key = Rows(model.KvHeads), KeyPreRope = Rows(model.KvHeads), Value = Rows(model.KvHeads), Query = Rows(model.QueryHeads) };
        var admitted = new List<CacheSequence>();
        long held = 0, peak = 0;
        for (meter.Restart(); TryAdmit(cache, plan, inputs) is { } sequence; meter.Restart())
        {
            admitted.Add(sequence);
            (peak, held) = (Math.Max(peak, meter.Peak - held), meter.Used);
        }
        if (admitted.Count == 0)
            throw new InvalidOperationException($"{model.Name} leaves no room for a sequence in {gigabytes} GB.");
        var result = new Admission(workspace, cache.Blocks, admitted.Count, admitted[0].OwnBlocks, (int)peak, (double)cache.UnusedSlots / (held * blockSize));
        admitted.ForEach(sequence => sequence.Dispose());
        if (cache.FreeBlocks != cache.Blocks)
            throw new InvalidOperationException($"{cache.Blocks - cache.FreeBlocks} blocks were not given back.");
        return result;
    }

    /// <summary>Stores and compacts a sequence layer by layer; null, and nothing is held, where the pool refuses.</summary>
    private static CacheSequence? TryAdmit(PagedCache cache, LayerPlan plan, LayerInputs inputs)
    {
        var sequence = cache.CreateSequence();
        try
        {
            for (int layer = 0; layer < cache.Options.Layers; layer++)
            {
                sequence.Store(layer, inputs.Key, inputs.Value, 0, Tokens, 0);
                using var pending = CacheCompressor.CompactPrefill([sequence], layer, plan, inputs);
                pending.Complete();
            }
            return sequence;
        }
        catch (CompactorException refusal) when (refusal.Status == CompactorStatus.OutOfBlocks)
        {
            sequence.Dispose();
            return null;
        }
    }

    /// <summary>A device that does nothing, but where offsets of survivors are read back, these are read.</summary>
    private sealed unsafe class SelectingDriver(int[] offsets) : NullDriver
    {
        public override void CopyToHost(nint source, nint destination, long bytes, GpuStream stream)
        {
            if (bytes == offsets.Length * sizeof(int))
                offsets.CopyTo(new Span<int>((void*)destination, offsets.Length));
        }
    }
}
