using System.Text.Json.Nodes;
using Compactor.Native;

namespace Compactor.Bench.Peers;

/// <summary>A float32 tensor that peers read, in host memory.</summary>
/// <param name="Name">Its name in the peers' scripts.</param>
/// <param name="Address">Of the first element.</param>
/// <param name="Length">Elements.</param>
/// <param name="IsIndex">Whether elements are whole numbers, which peers turn to int64 before anything is timed.</param>
internal sealed record PeerInput(string Name, nint Address, long Length, bool IsIndex = false)
{
    public static PeerInput Of(string name, TensorView view) => new(name, view.Address, (long)view.Tokens * view.Heads * view.Dim);

    public static PeerInput Of(string name, BufferView<float> view, bool isIndex = false) => new(name, view.Address, view.Length, isIndex);
}

/// <summary>What is compared: a computation of the library's that peers repeat.</summary>
/// <param name="Name">What is computed, on what.</param>
/// <param name="Dimensions">Stage, sizes and options, for the peers and the result file.</param>
/// <param name="Inputs">What peers compute from.</param>
/// <param name="Run">Runs ours once.</param>
/// <param name="Outputs">Results of the last run.</param>
/// <param name="Tolerance">Largest relative L2 difference of the two results; 0 where they are the same numbers.</param>
/// <param name="Script">The PyTorch peer, in peers/.</param>
/// <param name="HasOnnxGraph">Whether standard ONNX operators express it.</param>
/// <param name="Owned">What is given back afterwards.</param>
internal sealed record Subject(string Name, JsonObject Dimensions, IReadOnlyList<PeerInput> Inputs, Action Run, Func<float[]> Outputs, double Tolerance, string Script, bool HasOnnxGraph,
    params IReadOnlyList<IDisposable> Owned) : IDisposable
{
    public void Dispose()
    {
        foreach (var owned in Owned)
            owned.Dispose();
    }
}
