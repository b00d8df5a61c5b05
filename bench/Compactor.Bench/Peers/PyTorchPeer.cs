using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text.Json.Nodes;

namespace Compactor.Bench.Peers;

/// <summary>PyTorch: a Python process that computes the same result on command.</summary>
internal sealed class PyTorchPeer : Peer
{
    private readonly PeerFolder _folder;
    private readonly Process _process;

    public PyTorchPeer(Python python, PeerFolder folder, string script) => (_folder, _process) = (folder, python.Start(script, folder.Path));

    public override string Name => "PyTorch";

    public override JsonObject Tune() => Ask("tune");

    public override double Seconds() => Ask("run")["seconds"]!.GetValue<double>();

    public override float[] Outputs()
    {
        Ask("outputs");
        return MemoryMarshal.Cast<byte, float>(File.ReadAllBytes(_folder.PathOf("peer_outputs.bin"))).ToArray();
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

    public override void Dispose()
    {
        _process.StandardInput.Close();
        _process.WaitForExit();
        _process.Dispose();
    }
}
