namespace Compactor.Host;

/// <summary>A question about a context, and the answer it should get.</summary>
/// <param name="Tokens">Tokens of the question; not empty.</param>
/// <param name="Answer">Tokens of the answer; not empty.</param>
public sealed record Question(int[] Tokens, int[] Answer);

/// <summary>How a model answers a question, by teacher forcing.</summary>
/// <param name="Nll">Negative log-likelihood of the answer, in nats, summed over its tokens.</param>
/// <param name="Greedy">The likeliest token at each place of the answer, given the answer's tokens before it.</param>
/// <param name="Exact">Whether these are the answer, so that greedy decoding gives it word for word.</param>
public readonly record struct AnswerScore(double Nll, int[] Greedy, bool Exact);
