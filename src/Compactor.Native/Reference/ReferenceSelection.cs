using Compactor.Native.Compression;

namespace Compactor.Native.Reference;

/// <summary>Segmented top-k of one sequence by sorting: higher score first, then lower token, then lower head.</summary>
internal static class ReferenceSelection
{
    /// <summary>Which (token, head) pairs are kept, <c>[n, Hkv]</c>.</summary>
    public static bool[,] Kept(LayerPlan plan, int b, Span<float> scores)
    {
        int n = plan.Shape.LengthOf(b), heads = plan.Shape.KvHeads, start = plan.Shape.CuSeqlens[b];
        int perHead = (int)(plan.KeptPairsOf(b) / heads);
        var score = new float[n, heads];
        for (int t = 0; t < n; t++)
            for (int h = 0; h < heads; h++)
                score[t, h] = scores[(start + t) * heads + h];

        var kept = new bool[n, heads];
        switch (plan.Options.SelectionScope)
        {
            case SelectionScope.Head:
                for (int h = 0; h < heads; h++)
                    Keep(perHead, [h]);
                break;
            case SelectionScope.Token:
                var best = Enumerable.Range(0, n).OrderByDescending(Sum).ThenBy(t => t).Take(perHead);
                foreach (int t in best)
                    for (int h = 0; h < heads; h++)
                        kept[t, h] = true;
                break;
            default:
                int minimum = Math.Min(n, plan.Options.MinTokensPerHead);
                for (int h = 0; h < heads; h++)
                    Keep(minimum, [h]);
                Keep((int)plan.KeptPairsOf(b) - minimum * heads, Enumerable.Range(0, heads));
                break;
        }
        return kept;

        void Keep(int count, IEnumerable<int> among)
        {
            var ranked = from t in Enumerable.Range(0, n)
                         from h in among
                         where !kept[t, h]
                         orderby score[t, h] descending, t, h
                         select (t, h);
            foreach (var (t, h) in ranked.Take(count).ToArray())
                kept[t, h] = true;
        }

        float Sum(int t)
        {
            float sum = 0;
            for (int h = 0; h < heads; h++)
                sum += score[t, h];
            return sum;
        }
    }
}
