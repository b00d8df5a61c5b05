using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>Every architecture against float64 logits of tiny random models, which a PyTorch script beside the data computed from the architectures' definitions.</summary>
public class ArchitectureTests
{
    private const double Tolerance = 2e-5;

    public static TheoryData<string> Models { get; } = ["llama2", "llama3", "llama-biases", "qwen2", "qwen3"];

    [Theory]
    [MemberData(nameof(Models))]
    public void Prefill_gives_the_reference_logits(string name)
    {
        using var run = new Run(name);
        using var prefill = run.Engine.Prefill(run.Tokens);
        Closeness.Assert(run.Expected("logits"), prefill.Logits(), Tolerance);
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void Decoding_token_by_token_gives_the_reference_logits(string name)
    {
        using var run = new Run(name);
        using var prefill = run.Engine.Prefill(run.Tokens[..1]);
        using var context = prefill.Compress(Budget.Retention(1));
        float[] expected = run.Expected("logits");
        for (int t = 0, vocabulary = run.Model.Config.VocabularySize; t < run.Tokens.Length; t++)
            Closeness.Assert(expected.AsSpan(t * vocabulary, vocabulary), t == 0 ? context.Logits : context.Extend(run.Tokens[t]), Tolerance);
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void Tokens_after_a_compressed_context_see_what_each_head_kept_at_its_own_position(string name)
    {
        using var run = new Run(name);
        float[] expected = run.Expected("kept_logits");
        int vocabulary = run.Model.Config.VocabularySize, later = expected.Length / vocabulary, first = run.Tokens.Length - later;
        int[] kept = run.Golden.Tensors["kept"].ToInt32();
        int perHead = kept.Sum() / (run.Model.Config.Layers * run.Model.Config.KvHeads);
        using var prefill = run.Engine.Prefill(run.Tokens[..first]);
        using var atOnce = prefill.Compress(Budget.Tokens(perHead), GivenPolicy.Options, new GivenPolicy(kept));
        Assert.Equal(kept.Sum(), atOnce.Pairs);
        using var oneByOne = atOnce.Fork();

        Closeness.Assert(expected.AsSpan()[^vocabulary..], atOnce.Extend(run.Tokens[first..]), Tolerance);
        for (int t = 0; t < later; t++)
            Closeness.Assert(expected.AsSpan(t * vocabulary, vocabulary), oneByOne.Extend(run.Tokens[first + t]), Tolerance);
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void Keys_before_and_after_RoPE_differ_by_the_rotation_the_model_states(string name)
    {
        using var run = new Run(name);
        var config = run.Model.Config;
        using var prefill = run.Engine.Prefill(run.Tokens);
        var shape = new LayerShape([0, run.Tokens.Length], config.QueryHeads, config.KvHeads, config.HeadDim, Native.ElementType.Float32);
        var plan = new LayerPlan(shape, GivenPolicy.Options with { SketchDimension = 16 }, Budget.Retention(0.5));
        for (int layer = 0; layer < config.Layers; layer++)
        {
            var inputs = prefill.Inputs(layer);
            Assert.Equal(config.QueryHeads, inputs.Query!.Value.Heads);
            using var given = LayerCompressor.Select(run.Engine.Backend, plan, inputs, SelectionPolicy.LeverageOnly);
            using var undone = LayerCompressor.Select(run.Engine.Backend, plan, inputs with { KeyPreRope = null, Rotary = config.Rotary }, SelectionPolicy.LeverageOnly);
            using var rotated = LayerCompressor.Select(run.Engine.Backend, plan, inputs with { KeyPreRope = inputs.Key }, SelectionPolicy.LeverageOnly);
            float[] expected = given.Leverage!.View.AsSpan().ToArray();
            Closeness.Assert(expected, undone.Leverage!.View.AsSpan(), 1e-4);
            Assert.True(expected.Zip(rotated.Leverage!.View.AsSpan().ToArray(), (a, b) => Math.Abs(a - b)).Max() > 0.01);
        }
    }

    private sealed class Run : IDisposable
    {
        private readonly CpuBackend _backend = new(2);

        public Run(string name)
        {
            Golden = SafetensorsFile.Open(TestFiles.Data($"{name}/expected.safetensors"));
            Model = LlamaModel.Load(TestFiles.Data(name));
            Engine = new Engine(Model, _backend, cacheTokens: 256, blockSize: 16);
            Tokens = Golden.Tensors["input_ids"].ToInt32();
        }

        public SafetensorsFile Golden { get; }

        public LlamaModel Model { get; }

        public Engine Engine { get; }

        public int[] Tokens { get; }

        public float[] Expected(string name) => Golden.Tensors[name].ToFloat32();

        public void Dispose()
        {
            Engine.Dispose();
            _backend.Dispose();
            Model.Dispose();
            Golden.Dispose();
        }
    }
}
