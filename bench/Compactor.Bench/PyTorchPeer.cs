using System.Diagnostics;
using System.Text.Json;

namespace Compactor.Bench;

/// <summary>The PyTorch peer: a Python process that computes the same scores on command.</summary>
internal sealed class PyTorchPeer : IDisposable
{
    private readonly Process _process;

    public PyTorchPeer(string python, string script, string folder)
    {
        _process = Process.Start(new ProcessStartInfo(python, [script, folder]) { RedirectStandardInput = true, RedirectStandardOutput = true })
            ?? throw new InvalidOperationException($"{python} did not start.");
    }

    /// <summary>Whether a Python with PyTorch and NumPy is there.</summary>
    public static bool IsInstalled(string python)
    {
        try
        {
            using var probe = Process.Start(new ProcessStartInfo(python, ["-c", "import torch, numpy"]) { RedirectStandardError = true });
            probe!.StandardError.ReadToEnd();
            probe.WaitForExit();
            return probe.ExitCode == 0;
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return false;
        }
    }

    /// <summary>Sends a command and returns the answer.</summary>
    public JsonElement Ask(string command)
    {
        _process.StandardInput.WriteLine(command);
        _process.StandardInput.Flush();
        string answer = _process.StandardOutput.ReadLine() ?? throw new InvalidOperationException($"The PyTorch peer ended while asked to {command}; its error is above.");
        return JsonDocument.Parse(answer).RootElement;
    }

    public void Dispose()
    {
        _process.StandardInput.Close();
        _process.WaitForExit();
        _process.Dispose();
    }
}
