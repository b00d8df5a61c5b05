using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>The bundled model against the logits that PyTorch computed from its weights.</summary>
public sealed class NeedleTests : IDisposable
{
    private readonly SafetensorsFile _golden = SafetensorsFile.Open(TestFiles.Data("needle_logits.safetensors"));
    private readonly LlamaModel _model = LlamaModel.Load(TestFiles.Needle);
    private readonly CpuBackend _backend = new(2);
    private readonly Engine _engine;
    private readonly int[] _tokens;
    private readonly float[] _logits;

    public NeedleTests()
    {
        _engine = new Engine(_model, _backend, cacheTokens: 16384);
        _tokens = _golden.Tensors["input_ids"].ToInt32();
        _logits = _golden.Tensors["logits"].ToFloat32();
    }

    [Fact]
    public void Prefill_gives_the_golden_logits()
    {
        using var prefill = _engine.Prefill(_tokens);
        AssertClose(_logits, prefill.Logits());
    }

    [Theory]
    [InlineData(1)]
    [InlineData(7)]
    [InlineData(64)]
    public void Extending_by_any_number_of_tokens_gives_the_golden_logits(int step)
    {
        int start = _tokens.Length - 65, vocabulary = _model.Config.VocabularySize;
        using var prefill = _engine.Prefill(_tokens[..start]);
        using var context = prefill.Compress(Budget.Retention(1));
        AssertClose(_logits.AsSpan((start - 1) * vocabulary, vocabulary), context.Logits);
        for (int at = start; at < _tokens.Length; at += step)
        {
            int end = Math.Min(at + step, _tokens.Length);
            AssertClose(_logits.AsSpan((end - 1) * vocabulary, vocabulary), context.Extend(_tokens[at..end]));
        }
    }

    public void Dispose()
    {
        _engine.Dispose();
        _backend.Dispose();
        _model.Dispose();
        _golden.Dispose();
    }

    private static void AssertClose(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual) => Closeness.Assert(expected, actual, 1e-3);
}
