using System.Text;

namespace Compactor.Cli.Reporting;

/// <summary>A compression as pictures and one page that shows them beside their figures.</summary>
internal static class Report
{
    /// <summary>Draws and lays out everything, in memory.</summary>
    /// <param name="report">The figures.</param>
    /// <param name="layers">The layers they are of.</param>
    /// <param name="input">Name of the file compressed.</param>
    /// <param name="json">The figures as JSON.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    public static IReadOnlyList<(string Name, byte[] Content)> Create(
        CompressionReport report, IReadOnlyList<CompressedLayer> layers, string input, byte[] json, Action<double> progress)
    {
        var page = new ReportPage(report, input);
        var pictures = new List<Picture>();
        var curves = report.Layers.Where(layer => layer.Curves is not null).Select(layer => layer.Curves!).ToArray();
        double share = report.Pairs == 0 ? 1 : (double)report.KeptPairs / report.Pairs;
        if (curves.Length > 0)
        {
            var mean = ErrorCurves.Mean(curves);
            pictures.Add(ErrorPicture.Draw(mean, share, "error.png", curves.Length == 1 ? "What it costs to keep less" : $"What it costs to keep less: mean of {curves.Length} layers"));
            page.AddCurves(pictures[^1], mean);
        }
        pictures.Add(LengthsPicture.Draw(report.Layers, "lengths.png", $"Tokens each head keeps, in blocks of {report.Settings.BlockSize}"));
        page.AddLengths(pictures[^1]);
        for (int i = 0; i < layers.Count; i++)
        {
            var ofLayer = new List<Picture>();
            string number = layers[i].Report.Number ?? "0", file = $"layer-{number}", title = layers[i].Report.Number is null ? "" : $"Layer {number}: ";
            // A cache without tokens has nothing on a map.
            if (layers[i].Selection.Scores is not null && layers[i].Report.Pairs > 0)
                ofLayer.Add(TokenMap.Scores(layers[i], file + ReportPage.ScoresSuffix, $"{title}fused scores (grey: protected, always kept)"));
            if (layers[i].Report.Pairs > 0)
                ofLayer.Add(TokenMap.Kept(layers[i], $"{file}-kept.png", $"{title}what is kept"));
            if (layers[i].Report.Curves is { } ofThis && layers.Count > 1)
                ofLayer.Add(ErrorPicture.Draw(ofThis, (double)layers[i].Report.Plan.KeptPairs / layers[i].Report.Pairs, $"{file}-error.png", $"{title}what it costs to keep less"));
            page.AddLayer(layers[i].Report, ofLayer);
            pictures.AddRange(ofLayer);
            progress((i + 1.0) / layers.Count);
        }
        return
        [
            (ReportFolder.Page, Encoding.UTF8.GetBytes(page.Html())),
            (ReportFolder.Figures, json),
            .. pictures.Select(picture => (picture.Name, picture.Png)),
        ];
    }
}
