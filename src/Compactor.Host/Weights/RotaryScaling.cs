using Compactor.Native.Compression;

namespace Compactor.Host;

/// <summary>
/// Frequencies of a model's rotary embedding: <c>theta^(-2i/D)</c>, as they are, divided by a factor (<c>linear</c>), or scaled by wavelength (<c>llama3</c>).
/// </summary>
internal static class RotaryScaling
{
    /// <summary>Reads <c>rope_theta</c> and <c>rope_scaling</c>, or <c>rope_parameters</c>, which holds both.</summary>
    public static RotaryEmbedding Read(JsonFile config, int headDim)
    {
        var scaling = config.Optional("rope_scaling") ?? config.Optional("rope_parameters");
        foreach (var place in (JsonFile?[])[config, scaling])
            if (place?.DoubleOr("partial_rotary_factor", 1) is { } share && share != 1)
                throw config.Unsupported("partial_rotary_factor", share, "1 is supported");
        double theta = config.DoubleOr("rope_theta", scaling?.DoubleOr("rope_theta", 10000) ?? 10000);
        var rotary = RotaryEmbedding.FromTheta(theta, headDim);
        if (scaling is null)
            return rotary;
        var frequencies = new double[headDim / 2];
        for (int i = 0; i < frequencies.Length; i++)
            frequencies[i] = Math.Pow(theta, -2.0 * i / headDim);
        string type = scaling.StringOr("rope_type", scaling.StringOr("type", "default"));
        switch (type)
        {
            case "default":
                return rotary;
            case "linear":
                double factor = scaling.Double("factor");
                return RotaryEmbedding.FromFrequencies([.. frequencies.Select(f => f / factor)]);
            case "llama3":
                return RotaryEmbedding.FromFrequencies(Llama3(frequencies, scaling.Double("factor"), scaling.Double("low_freq_factor"),
                    scaling.Double("high_freq_factor"), scaling.Positive("original_max_position_embeddings")));
            default:
                throw config.Unsupported("rope_scaling's rope_type", type, "default, linear and llama3 are supported");
        }
    }

    /// <summary>
    /// Llama 3.1's rule. With w = 2π/f the wavelength and L the original context: w above L/low is divided by the factor, w below L/high stays,
    /// and between them the two are blended by <c>s = (L/w - low)/(high - low)</c>: <c>(1 - s)·f/factor + s·f</c>.
    /// </summary>
    private static double[] Llama3(double[] frequencies, double factor, double low, double high, int originalContext) =>
        [.. frequencies.Select(f =>
        {
            double turns = originalContext * f / (2 * Math.PI);
            double unscaled = Math.Clamp((turns - low) / (high - low), 0, 1);
            return (1 - unscaled) * f / factor + unscaled * f;
        })];
}
