using Compactor.Native;
using Microsoft.ML.Tokenizers;

namespace Compactor.Host;

/// <summary>A SentencePiece model with byte-pair encoding and byte fallback, as Llama 2 uses it.</summary>
internal sealed class SentencePieceText : TextTokenizer
{
    private readonly LlamaTokenizer _pieces;

    private SentencePieceText(LlamaTokenizer pieces) => _pieces = pieces;

    public static SentencePieceText Open(string path)
    {
        try
        {
            using var stream = File.OpenRead(path);
            var pieces = LlamaTokenizer.Create(stream, addBeginOfSentence: false, addEndOfSentence: false);
            return new SentencePieceText(pieces) { Begin = [pieces.BeginningOfSentenceId] };
        }
        catch (Exception e) when (e is ArgumentException or IOException or UnauthorizedAccessException or InvalidOperationException)
        {
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' cannot be read as a SentencePiece model: {e.Message}", e);
        }
    }

    public override int[] Encode(string text) => [.. _pieces.EncodeToIds(text)];

    public override string Decode(IEnumerable<int> tokens) => _pieces.Decode(tokens);
}
