using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Compactor.Bench;

/// <summary>A PyTorch peer: a Python process that computes the same result on command, from inputs in a folder of its own.</summary>
internal sealed class PyTorchPeer : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("compactor-peer-");
    private readonly Process _process;

    /// <param name="python">Python with torch and numpy.</param>
    /// <param name="script">File name in peers/.</param>
    /// <param name="shape">Dimensions, as the script reads them.</param>
    /// <param name="inputs">Float32 tensors by name.</param>
    public PyTorchPeer(string python, string script, JsonObject shape, params ReadOnlySpan<(string Name, nint Address, long Length)> inputs)
    {
        File.WriteAllText(Path.Combine(_folder.FullName, "shape.json"), shape.ToJsonString());
        foreach (var (name, address, length) in inputs)
            Write(name, address, length);
        _process = Process.Start(new ProcessStartInfo(python, [Path.Combine(AppContext.BaseDirectory, "peers", script), _folder.FullName])
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
        }) ?? throw new InvalidOperationException($"{python} did not start.");
    }

    /// <summary>Whether a Python with PyTorch and NumPy is there; says what to install where it is not.</summary>
    public static bool IsInstalled(string python)
    {
        try
        {
            using var probe = Process.Start(new ProcessStartInfo(python, ["-c", "import torch, numpy"]) { RedirectStandardError = true });
            probe!.StandardError.ReadToEnd();
            probe.WaitForExit();
            if (probe.ExitCode == 0)
                return true;
        }
        catch (System.ComponentModel.Win32Exception exception)
        {
            Console.Error.WriteLine($"{python} does not start: {exception.Message}");
        }
        Console.Error.WriteLine($"{python} has no torch and numpy; install them with: apt-get install python3-torch python3-numpy libopenblas0-pthread");
        return false;
    }

    /// <summary>Lets the peer choose its fastest variant and thread count.</summary>
    public JsonElement Tune() => Ask("tune");

    /// <summary>Runs once.</summary>
    public double Seconds() => Ask("run").GetProperty("seconds").GetDouble();

    /// <summary>The peer's result.</summary>
    public float[] Outputs()
    {
        Ask("outputs");
        return MemoryMarshal.Cast<byte, float>(File.ReadAllBytes(Path.Combine(_folder.FullName, "peer_outputs.bin"))).ToArray();
    }

    private JsonElement Ask(string command)
    {
        _process.StandardInput.WriteLine(command);
        _process.StandardInput.Flush();
        string answer = _process.StandardOutput.ReadLine() ?? throw new InvalidOperationException($"The PyTorch peer ended while asked to {command}; its error is above.");
        return JsonDocument.Parse(answer).RootElement;
    }

    private unsafe void Write(string name, nint address, long length)
    {
        using var file = File.Create(Path.Combine(_folder.FullName, name + ".bin"));
        const int piece = 1 << 28;
        for (long done = 0; done < length; done += piece)
            file.Write(new ReadOnlySpan<byte>((float*)address + done, (int)Math.Min(piece, length - done) * sizeof(float)));
    }

    public void Dispose()
    {
        _process.StandardInput.Close();
        _process.WaitForExit();
        _process.Dispose();
        _folder.Delete(recursive: true);
    }
}
