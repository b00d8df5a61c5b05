using System.Text.Json;

namespace Compactor.Native.Calibration;

/// <summary>
/// How much of a context's cache to keep for a wanted quality: the steepness of its <see cref="QualityCurve"/> is <c>b = alpha·NLL(context) + beta</c>
/// (arXiv 2507.08143), fitted once for a model and a selection policy.
/// </summary>
/// <param name="Alpha">alpha, per nat per token.</param>
/// <param name="Beta">beta.</param>
public sealed record RetentionCalibration(double Alpha, double Beta)
{
    private const string Format = "compactor-calibration";
    private const int Version = 1;

    /// <summary>Observations it was fitted on; 0 when it was not fitted.</summary>
    public int Samples { get; init; }

    /// <summary>Root mean square of f - y over those observations, overestimates and underestimates alike.</summary>
    public double Error { get; init; }

    /// <summary>What it holds for, in the caller's words (a model, a policy); null when not stated.</summary>
    public string? Description { get; init; }

    /// <summary>The model it was fitted for, as its host tells models apart (a fingerprint of the weights); null when not stated.</summary>
    public string? Model { get; init; }

    /// <summary>The method it was fitted for, as its host writes it (a policy and every option that decides what it keeps); null when not stated.</summary>
    public string? Method { get; init; }

    /// <summary>Steepness b of a context.</summary>
    /// <param name="contextNll">NLL of the context, nats per token.</param>
    public double SteepnessOf(double contextNll) => Alpha * contextNll + Beta;

    /// <summary>Expected quality of a context at a retention, 0 to 1.</summary>
    /// <exception cref="CompactorException">The retention is not in [0, 1], or the NLL not finite.</exception>
    public double Quality(double retention, double contextNll) => QualityCurve.Quality(retention, SteepnessOf(contextNll));

    /// <summary>The smallest retention of a context whose expected quality reaches <paramref name="quality"/>.</summary>
    /// <param name="quality">tau, 0 to 1; 1 keeps everything.</param>
    /// <param name="contextNll">NLL of the context, nats per token.</param>
    /// <exception cref="CompactorException">The quality is not in [0, 1], or the NLL not finite.</exception>
    public double RetentionFor(double quality, double contextNll) => QualityCurve.RetentionFor(quality, SteepnessOf(contextNll));

    /// <summary>Fits alpha and beta by least squares; the same samples give the same result in any order of equal samples.</summary>
    /// <param name="samples">Two or more observations with a retention strictly between 0 and 1; others say nothing about b and are left out.</param>
    /// <param name="overestimatePenalty">Weight of squared errors where f is above y (it would promise too much), against 1 where it is below.</param>
    /// <exception cref="CompactorException">Too few samples, one out of range, or a penalty that is not above 0.</exception>
    public static RetentionCalibration Fit(IEnumerable<CalibrationSample> samples, double overestimatePenalty = 4)
    {
        if (!(overestimatePenalty > 0) || double.IsInfinity(overestimatePenalty))
            throw CompactorException.Argument($"The penalty of overestimates is {overestimatePenalty}; use a finite number above 0.");
        var used = new List<CalibrationSample>();
        foreach (var sample in samples)
        {
            sample.Validate();
            if (sample.Retention is > 0 and < 1)
                used.Add(sample);
        }
        if (used.Count < 2)
            throw CompactorException.Argument($"{used.Count} samples have a retention between 0 and 1; a fit takes 2 or more.");
        var (alpha, beta) = CalibrationFit.Solve(used, overestimatePenalty);
        var fitted = new RetentionCalibration(alpha, beta) { Samples = used.Count };
        double squares = used.Sum(s => Math.Pow(fitted.Quality(s.Retention, s.ContextNll) - s.Quality, 2));
        return fitted with { Error = Math.Sqrt(squares / used.Count) };
    }

    /// <summary>Writes it as JSON; an existing file is replaced at once, never left half written.</summary>
    /// <param name="path">File.</param>
    /// <exception cref="CompactorException">What is there is no regular file.</exception>
    /// <exception cref="IOException">It cannot be written.</exception>
    public void Save(string path)
    {
        string full = Io.Destination.Of(path), temporary = $"{full}.{Environment.ProcessId}.{Guid.NewGuid():N}.tmp";
        try
        {
            using (var stream = File.Create(temporary))
            using (var json = new Utf8JsonWriter(stream, new JsonWriterOptions { Indented = true }))
            {
                json.WriteStartObject();
                json.WriteString("format", Format);
                json.WriteNumber("version", Version);
                json.WriteNumber("alpha", Alpha);
                json.WriteNumber("beta", Beta);
                json.WriteNumber("samples", Samples);
                json.WriteNumber("error", Error);
                json.WriteString("description", Description);
                json.WriteString("model", Model);
                json.WriteString("method", Method);
                json.WriteEndObject();
            }
            File.Move(temporary, full, overwrite: true);
        }
        finally
        {
            File.Delete(temporary);
        }
    }

    /// <summary>Reads what <see cref="Save"/> wrote.</summary>
    /// <exception cref="CompactorException"><see cref="CompactorStatus.InvalidFile"/>: it is not a calibration, or of a newer version.</exception>
    /// <exception cref="IOException">It cannot be read.</exception>
    public static RetentionCalibration Load(string path)
    {
        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(path));
            var root = document.RootElement;
            if (root.ValueKind != JsonValueKind.Object || !root.TryGetProperty("format", out var format) || format.ValueKind != JsonValueKind.String || !format.ValueEquals(Format))
                throw Invalid($"it does not say \"format\": \"{Format}\"");
            int version = root.GetProperty("version").GetInt32();
            if (version != Version)
                throw Invalid($"its version is {version}; this library reads version {Version}");
            var read = new RetentionCalibration(root.GetProperty("alpha").GetDouble(), root.GetProperty("beta").GetDouble())
            {
                Samples = root.GetProperty("samples").GetInt32(),
                Error = root.GetProperty("error").GetDouble(),
                Description = root.GetProperty("description").GetString(),
                Model = Stated(root, "model"),
                Method = Stated(root, "method"),
            };
            return double.IsFinite(read.Alpha) && double.IsFinite(read.Beta) ? read : throw Invalid("alpha or beta is not finite");
        }
        catch (KeyNotFoundException e)
        {
            throw Invalid("it has no version, alpha, beta, samples, error or description", e);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or FormatException)
        {
            throw Invalid(e.Message, e);
        }

        // Files did not always state it.
        static string? Stated(JsonElement root, string name) => root.TryGetProperty(name, out var value) ? value.GetString() : null;

        CompactorException Invalid(string reason, Exception? inner = null) =>
            new(CompactorStatus.InvalidFile, $"'{path}' is not a calibration: {reason}. Write one with RetentionCalibration.Save or the compactor tool.", inner);
    }
}
