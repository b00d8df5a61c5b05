using System.Diagnostics;
using System.Globalization;
using Compactor.Host;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Cli;

/// <summary>One run of <c>generate</c>: reads, compresses, answers, and tells what was kept.</summary>
internal static class GenerationSession
{
    private const int BlockSize = CompressionSettings.DefaultBlockSize;

    // Of the time a run takes, roughly what loading and reading the prompt take; the rest is decoding.
    private const double Loaded = 0.2, Compressed = 0.5;

    private sealed record Answer(string? Question, int QuestionTokens, int[] Tokens, string Text);

    private sealed record Result(int PromptTokens, double Retention, double? PromptNll, long Pairs, long Kept, int Blocks, TimeSpan Read, TimeSpan Answered, Answer[] Answers);

    /// <param name="request">What to do.</param>
    /// <param name="json">Whether to print a JSON document instead of text.</param>
    /// <exception cref="CompactorException">A file cannot be read, or does not fit the model.</exception>
    public static void Execute(GenerationRequest request, bool json)
    {
        if (Directory.Exists(request.Prompt))
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{request.Prompt}' is a folder; name a text file in it.");
        string text = File.ReadAllText(request.Prompt);
        var calibration = request.Quality is null ? null : FittedCalibration.Load(request);
        var result = LazyProgress.Run($"Reading {Path.GetFileName(request.Prompt)}", progress => Run(request, text, calibration, progress));
        if (calibration?.Unstated is { } unstated)
            Terminal.Note(unstated);
        if (json)
            WriteJson(request, result);
        else
            Print(request, result);
    }

    private static Result Run(GenerationRequest request, string text, FittedCalibration? calibration, Action<double> progress)
    {
        using var model = LlamaModel.Load(request.Model);
        calibration?.RequireModel(model, request.Model);
        var tokenizer = TextTokenizer.Load(request.Model);
        int[] prompt = [.. tokenizer.Begin, .. tokenizer.Encode(text)];
        int[][] questions = [.. request.Questions.Select(tokenizer.Encode)];
        if (prompt.Length == tokenizer.Begin.Count)
            throw new CompactorException(CompactorStatus.InvalidArgument, $"'{request.Prompt}' has no tokens; write something to read.");
        RequireRoom(request, model.Config, prompt.Length, questions);
        progress(Loaded);

        using var backend = new CpuBackend(request.Threads);
        // A fork copies the partial last block of each head, and its own tokens begin there.
        int answerTokens = 2 * BlockSize + request.Generation.MaxTokens;
        using var engine = new Engine(model, backend, checked(prompt.Length + BlockSize + answerTokens + questions.Sum(question => question.Length + answerTokens)), BlockSize);
        long start = Stopwatch.GetTimestamp();
        double retention;
        double? nll = null;
        Context context;
        if (calibration is null)
        {
            retention = request.Retention!.Value;
            context = engine.PrefillCompressed([prompt], Budget.Retention(retention), request.Options)[0];
        }
        else
        {
            using var prefill = engine.Prefill(prompt);
            nll = prefill.Nll()[0];
            retention = calibration.Calibration.RetentionFor(request.Quality!.Value, nll.Value);
            context = prefill.Compress(Budget.Retention(retention), request.Options);
        }
        using var compressed = context;
        var read = Stopwatch.GetElapsedTime(start);
        long pairs = (long)prompt.Length * model.Config.KvHeads * model.Config.Layers, kept = context.Pairs;
        int blocks = engine.Cache.Blocks - engine.Cache.FreeBlocks;
        progress(Compressed);

        start = Stopwatch.GetTimestamp();
        Context[] asked = questions.Length == 0 ? [context] : [.. questions.Select(_ => context.Fork())];
        engine.Extend(questions.Length == 0 ? [] : asked, questions);
        var generation = new Generation(request.Generation with { EndTokens = [.. model.Config.EndTokens] });
        int[][] answers = generation.Run(asked, (i, tokens) =>
        {
            progress(Compressed + (1 - Compressed) * tokens.Count / request.Generation.MaxTokens);
            return request.Stop is { } stop && tokenizer.Decode(tokens).Contains(stop, StringComparison.Ordinal);
        });
        return new Result(prompt.Length, retention, nll, pairs, kept, blocks, read, Stopwatch.GetElapsedTime(start),
            [.. answers.Select((tokens, i) => new Answer(questions.Length == 0 ? null : request.Questions[i], questions.Length == 0 ? 0 : questions[i].Length, tokens, tokenizer.Decode(tokens)))]);
    }

    private static void RequireRoom(GenerationRequest request, ModelConfig config, int prompt, int[][] questions)
    {
        for (int i = 0; i < questions.Length; i++)
            if (questions[i].Length == 0)
                throw new CompactorException(CompactorStatus.InvalidArgument, $"Question {i + 1} has no tokens; write something, or leave it out.");
        long needed = (long)prompt + questions.Select(question => question.Length).DefaultIfEmpty(0).Max() + request.Generation.MaxTokens;
        if (needed > config.MaxPositions)
            throw new CompactorException(CompactorStatus.InvalidArgument,
                $"The prompt's {prompt} tokens, the longest question and an answer of {request.Generation.MaxTokens} take {needed} positions; the model has {config.MaxPositions}. Shorten the prompt, or lower --max-tokens.");
    }

    private static void Print(GenerationRequest request, Result result)
    {
        var culture = CultureInfo.InvariantCulture;
        Console.WriteLine(string.Create(culture,
            $"{result.PromptTokens:N0} tokens read, {result.Kept:N0} of {result.Pairs:N0} (token, head) pairs kept in {result.Blocks:N0} blocks, {result.Read.TotalSeconds:F1} s"));
        if (result.PromptNll is { } nll)
            Console.WriteLine(string.Create(culture, $"{nll:F3} nats a token: quality {request.Quality} takes retention {result.Retention:F3}"));
        foreach (var answer in result.Answers)
        {
            Console.WriteLine();
            if (answer.Question is not null)
                Console.WriteLine($"> {answer.Question}");
            Console.WriteLine(answer.Text);
        }
    }

    private static void WriteJson(GenerationRequest request, Result result) => JsonDocumentWriter.Write(json =>
    {
        json.WriteString("model", request.Model);
        json.WriteString("prompt", request.Prompt);
        json.WriteNumber("prompt_tokens", result.PromptTokens);
        json.WriteNumber("retention", result.Retention);
        json.WriteFinite("quality", request.Quality);
        json.WriteFinite("prompt_nll", result.PromptNll);
        json.WriteNumber("pairs", result.Pairs);
        json.WriteNumber("kept_pairs", result.Kept);
        json.WriteNumber("blocks", result.Blocks);
        json.WriteNumber("read_ms", result.Read.TotalMilliseconds);
        json.WriteNumber("answer_ms", result.Answered.TotalMilliseconds);
        json.WriteStartArray("answers");
        foreach (var answer in result.Answers)
        {
            json.WriteStartObject();
            json.WriteString("question", answer.Question);
            json.WriteNumber("question_tokens", answer.QuestionTokens);
            json.WriteStartArray("tokens");
            foreach (int token in answer.Tokens)
                json.WriteNumberValue(token);
            json.WriteEndArray();
            json.WriteString("text", answer.Text);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    });
}
