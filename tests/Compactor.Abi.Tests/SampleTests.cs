using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>Sample hosts; the one in C is among the native programs, the one beside ONNX Runtime among the packages.</summary>
public class SampleTests
{
    private static string Samples => Path.Combine(NativeBuild.Root, "interop", "samples");

    private static (string, string) Library => ("COMPACTOR_LIBRARY", NativeBuild.Library);

    [Fact]
    public void Python_with_numpy()
    {
        string output = Command.Run(Command.Python(), [Path.Combine(Samples, "python", "sample.py")], variables: [Library, ("PYTHONDONTWRITEBYTECODE", "1")]);
        Assert.Contains("kept [145, 145] of 500 tokens a head", output);
        Assert.Contains("COMPACTOR_INVALID_ARGUMENT: plan is NULL", output);
    }

    [Fact]
    public void Dotnet_with_nothing_but_platform_invoke() =>
        Assert.Contains("300 tokens a head became 95 and 95", Command.Run("dotnet", ["exec", Path.Combine(AppContext.BaseDirectory, "PInvokeSample.dll")], variables: Library));

    [Fact]
    public void PyTorch_with_cuda_tensors_or_the_reason_why_not()
    {
        string output = Command.Run("sh", ["-c", "\"$0\" \"$1\"; echo status $?", Command.Python(), Path.Combine(Samples, "python", "torch_cuda.py")], variables: [Library, ("PYTHONDONTWRITEBYTECODE", "1")]);
        Assert.Matches("survivors are the kept rows: True(.|\n)*status 0\n|(PyTorch is not installed|PyTorch finds no GPU here)(.|\n)*status 77\n", output);
        Assert.SkipWhen(output.Contains("status 77"), "needs a GPU, and PyTorch built for it");
    }
}
