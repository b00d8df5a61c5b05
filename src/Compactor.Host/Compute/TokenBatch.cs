using Compactor.Native.Paging;

namespace Compactor.Host;

/// <summary>New tokens of several sequences, packed end to end, and what each continues.</summary>
internal sealed class TokenBatch
{
    /// <param name="runs">Tokens of each sequence; none is empty.</param>
    /// <param name="firstPositions">Position of each sequence's first token.</param>
    /// <param name="prefixes">The cache that each sequence's tokens attend to beside each other; null where all begin a text.</param>
    public TokenBatch(IReadOnlyList<int[]> runs, IReadOnlyList<int> firstPositions, IReadOnlyList<CacheSequence>? prefixes)
    {
        Prefixes = prefixes;
        var cuSeqlens = new int[runs.Count + 1];
        for (int b = 0; b < runs.Count; b++)
            cuSeqlens[b + 1] = cuSeqlens[b] + runs[b].Length;
        (CuSeqlens, Tokens, Positions) = (cuSeqlens, new int[cuSeqlens[^1]], new int[cuSeqlens[^1]]);
        for (int b = 0; b < runs.Count; b++)
            for (int t = 0; t < runs[b].Length; t++)
                (Tokens[cuSeqlens[b] + t], Positions[cuSeqlens[b] + t]) = (runs[b][t], firstPositions[b] + t);
    }

    /// <summary>Sequences B.</summary>
    public int Sequences => CuSeqlens.Length - 1;

    /// <summary>Tokens N of all sequences.</summary>
    public int Count => Tokens.Length;

    /// <summary><c>[B+1]</c>.</summary>
    public int[] CuSeqlens { get; }

    /// <summary><c>[N]</c> token ids.</summary>
    public int[] Tokens { get; }

    /// <summary><c>[N]</c> positions.</summary>
    public int[] Positions { get; }

    /// <summary><c>[B]</c>, or null.</summary>
    public IReadOnlyList<CacheSequence>? Prefixes { get; }

    /// <summary>Tokens of one sequence.</summary>
    public int LengthOf(int b) => CuSeqlens[b + 1] - CuSeqlens[b];
}
