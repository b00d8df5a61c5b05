using Compactor.Native;
using Compactor.Native.Paging;

namespace Compactor.Host;

/// <summary>A text the model has read, as its compressed cache: it can be forked, extended and asked. Positions go on where the text ended, whatever was dropped.</summary>
public sealed class Context : IDisposable
{
    private float[] _logits;

    internal Context(Engine engine, CacheSequence sequence, int position, float[] logits) =>
        (Engine, Sequence, Position, _logits) = (engine, sequence, position, logits);

    /// <summary>The engine it is of.</summary>
    public Engine Engine { get; }

    /// <summary>What the cache holds.</summary>
    public CacheSequence Sequence { get; }

    /// <summary>Tokens read so far: the position of the next.</summary>
    public int Position { get; private set; }

    /// <summary>Logits after the last token, <c>[vocabulary]</c>.</summary>
    public ReadOnlySpan<float> Logits => _logits;

    /// <summary>(token, head) pairs held in all layers.</summary>
    public long Pairs
    {
        get
        {
            long pairs = 0;
            for (int layer = 0; layer < Engine.Model.Config.Layers; layer++)
                foreach (int length in Sequence.Lengths(layer))
                    pairs += length;
            return pairs;
        }
    }

    /// <summary>A context with the same content; full blocks are shared, not copied.</summary>
    /// <exception cref="CompactorException">The cache is full.</exception>
    public Context Fork() => new(Engine, Sequence.Fork(), Position, _logits);

    /// <summary>Appends tokens.</summary>
    /// <param name="tokens">One token or more.</param>
    /// <returns>Logits after the last, <c>[vocabulary]</c>.</returns>
    /// <exception cref="CompactorException">Tokens are not the model's, the text would be too long, or the cache is full; the context holds no other tokens then, but may keep room reserved for new ones.</exception>
    public float[] Extend(params int[] tokens) => Engine.Extend([this], [tokens])[0];

    /// <summary>Gives its blocks back.</summary>
    public void Dispose() => Sequence.Dispose();

    internal void Advance(int tokens, float[] logits) => (Position, _logits) = (Position + tokens, logits);
}
