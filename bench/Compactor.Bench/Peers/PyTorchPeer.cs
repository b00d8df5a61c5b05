using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using System.Text.Json.Nodes;

namespace Compactor.Bench.Peers;

/// <summary>PyTorch: a Python process that computes the same result on command.</summary>
internal sealed class PyTorchPeer(Python python, PeerFolder folder, string script) : Peer
{
    private Process _process = python.Start(script, folder.Path);

    public override string Name => "PyTorch";

    /// <summary>With the vectors that PyTorch takes by itself, and with 512-bit ones where the machine has them: that is fixed when its process starts.</summary>
    public override JsonObject Tune()
    {
        var tuned = Ask("tune");
        tuned["vectors"] = "its own choice";
        if (!Avx512F.IsSupported)
            return tuned;
        var first = _process;
        _process = python.Start(script, folder.Path, wide: true);
        var wide = Ask("tune");
        wide["vectors"] = "512 bits";
        bool wins = wide["seconds"]!.GetValue<double>() < tuned["seconds"]!.GetValue<double>();
        var (better, other) = wins ? (wide, tuned) : (tuned, wide);
        better["other_vectors"] = new JsonObject { ["vectors"] = other["vectors"]!.DeepClone(), ["seconds"] = other["seconds"]!.DeepClone(), ["wholes"] = other["wholes"]!.DeepClone() };
        End(wins ? first : _process);
        _process = wins ? _process : first;
        return better;
    }

    public override double Seconds() => Ask("run")["seconds"]!.GetValue<double>();

    public override float[] Outputs()
    {
        Ask("outputs");
        return MemoryMarshal.Cast<byte, float>(File.ReadAllBytes(folder.PathOf("peer_outputs.bin"))).ToArray();
    }

    /// <summary>Writes the stage as ONNX graphs into the folder.</summary>
    public void ExportGraphs() => Ask("graphs");

    private JsonObject Ask(string command)
    {
        _process.StandardInput.WriteLine(command);
        _process.StandardInput.Flush();
        string answer = _process.StandardOutput.ReadLine() ?? throw new InvalidOperationException($"The PyTorch peer ended while asked to {command}; its error is above.");
        return JsonNode.Parse(answer)!.AsObject();
    }

    public override void Dispose() => End(_process);

    private static void End(Process process)
    {
        process.StandardInput.Close();
        process.WaitForExit();
        process.Dispose();
    }
}
