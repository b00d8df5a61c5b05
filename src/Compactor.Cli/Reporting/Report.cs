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
        var curves = report.Layers.Where(layer => layer.Curves is not null).Select(layer => layer.Curves!).ToArray();
        var mean = curves.Length == 0 ? null : ErrorCurves.Mean(curves);
        Func<Picture>[][] drawings = [OfAll(report, mean, curves.Length), .. layers.Select(layer => OfLayer(layer, layers.Count > 1))];
        var pictures = Draw(drawings, progress);

        var page = new ReportPage(report, input);
        if (mean is not null)
            page.AddCurves(pictures[0][0], mean);
        page.AddLengths(pictures[0][^1]);
        for (int i = 0; i < layers.Count; i++)
            page.AddLayer(layers[i].Report, pictures[i + 1]);
        return
        [
            (ReportFolder.Page, Encoding.UTF8.GetBytes(page.Html())),
            (ReportFolder.Figures, json),
            .. pictures.SelectMany(group => group).Select(picture => (picture.Name, picture.Png)),
        ];
    }

    private static Func<Picture>[] OfAll(CompressionReport report, ErrorCurves? mean, int curves)
    {
        double share = report.Pairs == 0 ? 1 : (double)report.KeptPairs / report.Pairs;
        string lengths = $"Tokens each head keeps, in blocks of {report.Settings.BlockSize}";
        return
        [
            .. mean is null ? [] : (Func<Picture>[])[() => ErrorPicture.Draw(mean, share, "error.png", curves == 1 ? "What it costs to keep less" : $"What it costs to keep less: mean of {curves} layers")],
            () => LengthsPicture.Draw(report.Layers, "lengths.png", lengths),
        ];
    }

    private static Func<Picture>[] OfLayer(CompressedLayer layer, bool ofSeveral)
    {
        var drawings = new List<Func<Picture>>();
        string file = $"layer-{layer.Report.Number ?? "0"}", title = layer.Report.Number is { } number ? $"Layer {number}: " : "";
        // A cache without tokens has nothing on a map.
        if (layer.Selection.Scores is not null && layer.Report.Pairs > 0)
            drawings.Add(() => TokenMap.Scores(layer, file + ReportPage.ScoresSuffix, $"{title}fused scores (grey: protected, always kept)"));
        if (layer.Report.Pairs > 0)
            drawings.Add(() => TokenMap.Kept(layer, $"{file}-kept.png", $"{title}what is kept"));
        if (layer.Report.Curves is { } curves && ofSeveral)
            drawings.Add(() => ErrorPicture.Draw(curves, (double)layer.Report.Plan.KeptPairs / layer.Report.Pairs, $"{file}-error.png", $"{title}what it costs to keep less"));
        return [.. drawings];
    }

    /// <summary>Draws on all cores: pictures share nothing.</summary>
    private static Picture[][] Draw(Func<Picture>[][] drawings, Action<double> progress)
    {
        Picture[][] pictures = [.. drawings.Select(group => new Picture[group.Length])];
        (int Group, int Index)[] all = [.. drawings.SelectMany((group, g) => group.Select((_, i) => (g, i)))];
        int done = 0;
        Parallel.ForEach(all, item =>
        {
            pictures[item.Group][item.Index] = drawings[item.Group][item.Index]();
            progress((double)Interlocked.Increment(ref done) / all.Length);
        });
        return pictures;
    }
}
