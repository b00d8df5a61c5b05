using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Host.Evaluation;

/// <summary>
/// A way to compress, by name: a preset of the method, or a policy. Baselines keep equally many tokens in every head, as published; the method's own policies let the heads
/// of a layer compete. Protected tokens (the first 4 and the last 16, on top of the budget) are those of the Paper preset for all but the other two presets, which have their own.
/// </summary>
/// <param name="Name">Name on the command line.</param>
/// <param name="Options">Options of the method.</param>
/// <param name="PolicyOf">The policy of a context's seed.</param>
public sealed record EvaluatedMethod(string Name, CompressionOptions Options, Func<ulong, SelectionPolicy> PolicyOf)
{
    /// <summary>Names of all: presets, then policies.</summary>
    public static IReadOnlyList<string> Names { get; } =
        [SelectionPolicy.Compactor.Name, "kvpress", "compactor-vllm", .. SelectionPolicy.All(0).Skip(1).Select(policy => policy.Name)];

    /// <summary>The method of a name.</summary>
    /// <param name="name">One of <see cref="Names"/>.</param>
    /// <param name="options">Options of all but the other two presets; null for the Paper preset.</param>
    /// <exception cref="CompactorException">There is none; the message lists the names.</exception>
    public static EvaluatedMethod Named(string name, CompressionOptions? options = null)
    {
        options ??= CompressionPresets.Paper;
        if (!Names.Contains(name))
            throw new CompactorException(CompactorStatus.InvalidArgument, $"There is no policy '{name}'; use one of {string.Join(", ", Names)}.");
        if (CompressionPresets.ByName.TryGetValue(name, out var preset))
            return new EvaluatedMethod(name, preset, _ => SelectionPolicy.Compactor);
        bool ownScope = new[] { SelectionPolicy.Compactor, SelectionPolicy.LeverageOnly, SelectionPolicy.AttentionOnly }.Any(policy => policy.Name == name);
        return new EvaluatedMethod(name, ownScope ? options : options with { SelectionScope = SelectionScope.Head }, seed => SelectionPolicy.Named(name, seed));
    }
}
