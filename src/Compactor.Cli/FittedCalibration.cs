using Compactor.Host;
using Compactor.Native;
using Compactor.Native.Calibration;

namespace Compactor.Cli;

/// <summary>The calibration that <c>--quality</c> uses, and whether it was fitted for what it is used for.</summary>
/// <param name="Path">Its file.</param>
/// <param name="Calibration">What is in it.</param>
internal sealed record FittedCalibration(string Path, RetentionCalibration Calibration)
{
    /// <summary>Reads the file that the request names, or that of the model.</summary>
    /// <exception cref="CompactorException">There is none, or it was fitted for another method.</exception>
    public static FittedCalibration Load(GenerationRequest request)
    {
        string path = request.Calibration ?? System.IO.Path.Combine(request.Model, "calibration.json");
        if (Directory.Exists(path))
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' is a folder; name the calibration in it.");
        if (!File.Exists(path))
            throw new CompactorException(CompactorStatus.InvalidFile, $"'{path}' does not exist; --quality needs a calibration of the model. Name one with --calibration, or use --retention.");
        var fitted = new FittedCalibration(path, RetentionCalibration.Load(path));
        fitted.RequireMethod(request.Method);
        return fitted;
    }

    /// <summary>What the file does not say of itself; null where it says all.</summary>
    public string? Unstated => (Calibration.Model, Calibration.Method) switch
    {
        (null, null) => Say("model and which options of the method"),
        (null, _) => Say("model"),
        (_, null) => Say("options of the method"),
        _ => null,
    };

    /// <exception cref="CompactorException">It was fitted for another model.</exception>
    public void RequireModel(LlamaModel model, string folder)
    {
        if (Calibration.Model is { } fitted && fitted != model.Fingerprint)
            throw new CompactorException(CompactorStatus.InvalidArgument,
                $"'{Path}' was fitted for the model {fitted}; '{model.Name}' is {model.Fingerprint}. Fit one for it with 'compactor calibrate --model {folder} --out FILE', or use --retention.");
    }

    private void RequireMethod(string method)
    {
        if (Calibration.Method is null)
            return;
        string[] fitted = Calibration.Method.Split(' '), used = method.Split(' ');
        if (!fitted.ToHashSet().SetEquals(used))
            throw new CompactorException(CompactorStatus.InvalidArgument,
                $"'{Path}' was fitted for {Differing(fitted, used)}; this is {Differing(used, fitted)}. Fit one with 'compactor calibrate' and the options given here, give those it was fitted for, or use --retention.");
    }

    // The policy, and the options that the other has not.
    private static string Differing(string[] method, string[] other) => string.Join(' ', method.Where((part, i) => i == 0 || !other.Contains(part)));

    private string Say(string what) => $"'{Path}' does not say for which {what} it was fitted; whether that is what is used here is not known.";
}
