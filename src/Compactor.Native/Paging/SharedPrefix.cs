namespace Compactor.Native.Paging;

/// <summary>
/// Full blocks that several sequences read and none writes: one object with one count. What it continues, it holds a share of. Guarded by the cache's lock.
/// </summary>
internal sealed class SharedPrefix(int[] blocks, SharedPrefix? continues)
{
    public int[] Blocks => blocks;

    public SharedPrefix? Continues => continues;

    /// <summary>Sequences and prefixes that hold it.</summary>
    public int Holders { get; set; } = 1;
}
