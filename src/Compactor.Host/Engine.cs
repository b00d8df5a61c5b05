using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;

namespace Compactor.Host;

/// <summary>
/// Runs a model on the CPU: prefill, compression of its cache, decoding from the compressed cache. Used by one thread at a time; several engines, each with its backend,
/// may share a model. A token's results do not depend on what else is in its batch, nor on the number of threads.
/// </summary>
public sealed class Engine : IDisposable
{
    private readonly CpuBackend _backend;

    /// <summary>Creates an engine and its paged cache, float32.</summary>
    /// <param name="model">The model; it must outlive the engine.</param>
    /// <param name="backend">Where to compute; it must outlive the engine.</param>
    /// <param name="cacheTokens">Tokens that the cache has room for in all layers and heads, over all contexts; each context leaves a block a head partly unused.</param>
    /// <param name="blockSize">Tokens of a head-block, 16 to 256.</param>
    /// <exception cref="CompactorException">The cache's shape is out of range.</exception>
    public Engine(LlamaModel model, CpuBackend backend, int cacheTokens = 8192, int blockSize = 128)
    {
        (Model, _backend) = (model, backend);
        var config = model.Config;
        Forward = new ForwardPass(model, backend, new Cores(backend.Threads));
        Cache = new PagedCache(backend, new PagedCacheOptions
        {
            Layers = config.Layers,
            KvHeads = config.KvHeads,
            HeadDim = config.HeadDim,
            ElementType = ElementType.Float32,
            BlockSize = blockSize,
            Blocks = checked((cacheTokens + blockSize - 1) / blockSize * config.KvHeads * config.Layers),
        });
    }

    /// <summary>The model.</summary>
    public LlamaModel Model { get; }

    /// <summary>The cache of all contexts.</summary>
    public PagedCache Cache { get; }

    internal ForwardPass Forward { get; }

    internal KvBackend Backend => _backend;

    /// <summary>Runs prompts and keeps what every layer's attention saw, to be compressed in any number of ways.</summary>
    /// <param name="prompts">Tokens of each prompt; none is empty.</param>
    /// <exception cref="CompactorException">A prompt is empty, too long for the model, or holds a token that it does not have.</exception>
    public Prefill Prefill(params IReadOnlyList<int[]> prompts)
    {
        var batch = NewTexts(prompts);
        var layers = new List<LayerActivations>();
        try
        {
            var residual = Forward.Run(batch, _ =>
            {
                layers.Add(new LayerActivations(_backend, Model.Config, batch.Count));
                return layers[^1];
            }, done: null);
            return new Prefill(this, batch, layers, residual);
        }
        catch
        {
            layers.ForEach(layer => layer.Dispose());
            throw;
        }
    }

    /// <summary>
    /// Runs prompts and compresses each layer as soon as its attention is computed: what a host does. The layer's activations are reused for the next, so that only
    /// survivors take memory.
    /// </summary>
    /// <param name="prompts">Tokens of each prompt; none is empty.</param>
    /// <param name="budget">How much of each layer of each prompt to keep.</param>
    /// <param name="options">Options of the method; null for <see cref="CompressionPresets.Paper"/>.</param>
    /// <param name="policy">What scores; null for <see cref="SelectionPolicy.Compactor"/>.</param>
    /// <returns>A context for each prompt.</returns>
    /// <exception cref="CompactorException">As <see cref="Prefill"/>; the budget cannot be met; or the cache is full, and nothing of it is taken then.</exception>
    public Context[] PrefillCompressed(IReadOnlyList<int[]> prompts, Budget budget, CompressionOptions? options = null, SelectionPolicy? policy = null)
    {
        var batch = NewTexts(prompts);
        var sequences = NewSequences(batch.Sequences);
        try
        {
            using var activations = new LayerActivations(_backend, Model.Config, batch.Count);
            using var residual = Forward.Run(batch, _ => activations, (layer, done) => Store(sequences, layer, batch, done, budget, options, policy));
            return NewContexts(batch, sequences, residual.View);
        }
        catch
        {
            foreach (var sequence in sequences)
                sequence.Dispose();
            throw;
        }
    }

    /// <summary>Appends tokens to contexts, in one batch.</summary>
    /// <param name="contexts">Contexts of this engine, each once.</param>
    /// <param name="tokens">New tokens of each; none is empty.</param>
    /// <returns>Logits after the last new token of each context, <c>[vocabulary]</c>; also <see cref="Context.Logits"/>.</returns>
    /// <exception cref="CompactorException">Tokens are not the model's, a context would be too long, or the cache is full; no context holds other tokens then, though some may keep the room reserved for new ones.</exception>
    public float[][] Extend(IReadOnlyList<Context> contexts, IReadOnlyList<int[]> tokens)
    {
        if (contexts.Count != tokens.Count)
            throw Argument($"There are {contexts.Count} contexts and tokens for {tokens.Count}; give each context its tokens.");
        if (contexts.Count == 0)
            return [];
        for (int b = 0; b < contexts.Count; b++)
        {
            CheckContext(contexts[b]);
            if (contexts.Take(b).Contains(contexts[b]))
                throw Argument($"Context {b} of the batch is there twice; fork it.");
            CheckTokens(tokens[b], contexts[b].Position);
        }
        CacheSequence[] sequences = [.. contexts.Select(context => context.Sequence)];
        for (int b = 0; b < sequences.Length; b++)
            for (int layer = 0; layer < Model.Config.Layers; layer++)
                sequences[b].Reserve(layer, tokens[b].Length);

        var batch = new TokenBatch(tokens, [.. contexts.Select(context => context.Position)], sequences);
        using var activations = new LayerActivations(_backend, Model.Config, batch.Count);
        using var residual = Forward.Run(batch, _ => activations, (layer, done) =>
        {
            var inputs = done.Inputs;
            for (int b = 0; b < sequences.Length; b++)
                sequences[b].Store(layer, inputs.Key, inputs.Value, batch.CuSeqlens[b], batch.LengthOf(b), contexts[b].Position);
        });
        float[][] logits = LastLogits(batch, residual.View);
        for (int b = 0; b < contexts.Count; b++)
            contexts[b].Advance(tokens[b].Length, logits[b]);
        return logits;
    }

    /// <summary>
    /// Asks one context many questions, in one batch, and scores given answers by teacher forcing. All questions read the one cached context, nothing is stored, and
    /// the context is as before.
    /// </summary>
    /// <param name="context">A context of this engine.</param>
    /// <param name="questions">Questions with their answers.</param>
    /// <returns>A score for each question.</returns>
    /// <exception cref="CompactorException">A question or answer is empty, is too long for the model, or holds a token that it does not have.</exception>
    public AnswerScore[] Score(Context context, IReadOnlyList<Question> questions)
    {
        CheckContext(context);
        if (questions.Count == 0)
            return [];
        var runs = new int[questions.Count][];
        for (int i = 0; i < runs.Length; i++)
        {
            CheckTokens(questions[i].Tokens, context.Position);
            CheckTokens(questions[i].Answer, context.Position + questions[i].Tokens.Length);
            runs[i] = [.. questions[i].Tokens, .. questions[i].Answer[..^1]];
        }
        var positions = new int[runs.Length];
        Array.Fill(positions, context.Position);
        var prefixes = new CacheSequence[runs.Length];
        Array.Fill(prefixes, context.Sequence);
        var batch = new TokenBatch(runs, positions, prefixes);
        using var activations = new LayerActivations(_backend, Model.Config, batch.Count);
        using var residual = Forward.Run(batch, _ => activations, done: null);

        var rows = new List<int>();
        for (int i = 0; i < runs.Length; i++)
            for (int t = batch.CuSeqlens[i + 1] - questions[i].Answer.Length; t < batch.CuSeqlens[i + 1]; t++)
                rows.Add(t);
        using var logits = Forward.Logits(residual.View, [.. rows]);
        var scores = new AnswerScore[runs.Length];
        int vocabulary = Model.Config.VocabularySize;
        for (int i = 0, row = 0; i < scores.Length; i++)
        {
            int[] answer = questions[i].Answer, greedy = new int[answer.Length];
            double nll = 0;
            for (int t = 0; t < answer.Length; t++, row++)
            {
                var rowLogits = logits.View.Slice((long)row * vocabulary, vocabulary).AsSpan();
                nll += LogProbability.Nll(rowLogits, answer[t]);
                greedy[t] = LogProbability.Best(rowLogits);
            }
            scores[i] = new AnswerScore(nll, greedy, greedy.AsSpan().SequenceEqual(answer));
        }
        return scores;
    }

    /// <summary>Gives the cache's memory back. Contexts must not be used afterwards.</summary>
    public void Dispose() => Cache.Dispose();

    internal CacheSequence[] NewSequences(int count) => [.. Enumerable.Range(0, count).Select(_ => Cache.CreateSequence())];

    /// <summary>Compresses a layer of a prefill into empty sequences.</summary>
    internal static void Store(CacheSequence[] sequences, int layer, TokenBatch batch, LayerActivations activations, Budget budget, CompressionOptions? options, SelectionPolicy? policy)
    {
        var cache = sequences[0].Cache.Options;
        var inputs = activations.Inputs;
        // Every prompt is sequence 0 of itself: what is kept of it does not depend on its place in a batch.
        var shape = new LayerShape(batch.CuSeqlens, inputs.Query!.Value.Heads, cache.KvHeads, cache.HeadDim, cache.ElementType) { Layer = layer, SequenceIds = new long[batch.Sequences] };
        using var pending = CacheCompressor.StorePrefill(sequences, layer, new LayerPlan(shape, options ?? CompressionPresets.Paper, budget), inputs, policy: policy);
        pending.Complete();
    }

    internal Context[] NewContexts(TokenBatch batch, CacheSequence[] sequences, BufferView<float> residual)
    {
        float[][] logits = LastLogits(batch, residual);
        return [.. sequences.Select((sequence, b) => new Context(this, sequence, batch.LengthOf(b), logits[b]))];
    }

    private float[][] LastLogits(TokenBatch batch, BufferView<float> residual)
    {
        int[] last = [.. batch.CuSeqlens.Skip(1).Select(end => end - 1)];
        using var logits = Forward.Logits(residual, last);
        int vocabulary = Model.Config.VocabularySize;
        return [.. last.Select((_, b) => logits.View.Slice((long)b * vocabulary, vocabulary).AsSpan().ToArray())];
    }

    private TokenBatch NewTexts(IReadOnlyList<int[]> prompts)
    {
        if (prompts.Count == 0)
            throw Argument("There are no prompts; give one or more.");
        foreach (int[] prompt in prompts)
            CheckTokens(prompt, 0);
        return new TokenBatch(prompts, new int[prompts.Count], null);
    }

    private void CheckContext(Context context)
    {
        if (context.Engine != this)
            throw Argument("The context is of another engine; use that.");
    }

    private void CheckTokens(int[] tokens, int position)
    {
        if (tokens.Length == 0)
            throw Argument("A run of tokens is empty; give one token or more.");
        foreach (int token in tokens)
            if (token < 0 || token >= Model.Config.VocabularySize)
                throw Argument($"There is no token {token}; the model has {Model.Config.VocabularySize}.");
        if (position + (long)tokens.Length > Model.Config.MaxPositions)
            throw Argument($"{tokens.Length} tokens from position {position} on reach beyond the model's {Model.Config.MaxPositions} positions; shorten the text.");
    }

    private static CompactorException Argument(string message) => new(CompactorStatus.InvalidArgument, message);
}
