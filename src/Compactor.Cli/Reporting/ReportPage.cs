namespace Compactor.Cli.Reporting;

/// <summary>The page of a compression.</summary>
internal sealed class ReportPage
{
    /// <summary>How the names of pictures of scores end.</summary>
    public const string ScoresSuffix = "-scores.png";

    private readonly HtmlPage _page;
    private readonly CompressionReport _report;

    public ReportPage(CompressionReport report, string input)
    {
        _report = report;
        string title = $"{input}, compressed";
        var (settings, blocks) = (report.Settings, report.Blocks);
        _page = new HtmlPage(title, report.Summary(),
            $"{settings.Preset} preset, {settings.Budget}{report.Protection()}; {report.Backend}; compactor {CompressionSettings.ToolVersion}.");
        foreach (string note in report.Notes)
            _page.Small($"Note: {note}");
        _page.Figures(
        [
            (Units.Percent(report.Pairs == 0 ? 1 : (double)report.KeptPairs / report.Pairs), "of all pairs kept"),
            ($"{Units.Count(blocks.Before)} -> {Units.Count(blocks.After)}", $"blocks of {settings.BlockSize} tokens"),
            (Units.Bytes(blocks.BytesReturned), "returned to the pool"),
            (Units.Percent(blocks.UnusedShare.After), "of taken slots unused"),
            .. report.Mean(e => e.Compressed) is { } error ? [(Units.Percent(error), "error of outputs")] : ((string, string)[])[],
        ]);

        string[] headers = ["Layer", "Pairs", "Blocks", "Returned", "Unused slots", "Error", "Random", "Recent"];
        _page.Table(headers, [
            .. report.Layers.Select(l => Row(l.Number ?? "-", l.Pairs, l.Plan.KeptPairs, l.Blocks, l.Errors)),
            .. report.Layers.Count == 1 ? [] : (string[][])[Row("all", report.Pairs, report.KeptPairs, blocks,
                report.Mean(e => e.Compressed) is { } all ? new LayerErrors(all, report.Mean(e => e.Random)!.Value, report.Mean(e => e.Recent)!.Value) : null)],
        ], lastIsSum: report.Layers.Count > 1);
        _page.Small($"Returned: bytes of the blocks that the pool got back. Unused slots: slots of taken blocks that hold no token, before and after. {report.AboutErrors()}");

        static string[] Row(string name, long pairs, long kept, BlockUse blocks, LayerErrors? errors) =>
        [
            name, $"{Units.Count(pairs)} -> {Units.Count(kept)}", $"{Units.Count(blocks.Before)} -> {Units.Count(blocks.After)}", Units.Bytes(blocks.BytesReturned),
            $"{Units.Percent(blocks.UnusedShare.Before)} -> {Units.Percent(blocks.UnusedShare.After)}",
            Units.Percent(errors?.Compressed), Units.Percent(errors?.Random), Units.Percent(errors?.Recent),
        ];
    }

    /// <summary>Error against what is kept, with its figures.</summary>
    public void AddCurves(Picture picture, ErrorCurves curves)
    {
        _page.Heading("Error against what is kept");
        _page.Show(picture, $"Retention 5% to 100% in steps of 5%; what the method protects is kept beside it, and counts. {_report.AboutErrors()} The dotted line is this run.");
        var policies = ErrorPicture.Policies.Where(p => curves.Errors.ContainsKey(p.Policy)).ToArray();
        _page.Details("Figures", ["Retention", "Kept", .. policies.Select(p => p.Label)],
            [.. Enumerable.Range(0, curves.Retention.Length).Select(i => (string[])
                [Units.Percent(curves.Retention[i]), Units.Percent(curves.KeptShare[i]), .. policies.Select(p => Units.Percent(curves.Errors[p.Policy][i]))])]);
    }

    /// <summary>Lengths of the heads.</summary>
    public void AddLengths(Picture picture)
    {
        _page.Heading("Lengths of the heads");
        _page.Show(picture, $"Heads need not keep equally many tokens. Blocks hold {_report.Settings.BlockSize} tokens of one head, so the last block of a head is partly unused.");
    }

    /// <summary>One layer.</summary>
    public void AddLayer(LayerReport layer, IReadOnlyList<Picture> pictures)
    {
        var shape = layer.Plan.Shape;
        _page.Heading(layer.Number is { } number ? $"Layer {number}" : "The layer");
        _page.Paragraph(
            $"{Units.Count(shape.Tokens)} tokens, {shape.KvHeads} KV heads of dimension {shape.HeadDim}, {shape.ElementType}. " +
            $"Kept {Units.Count(layer.Plan.KeptPairs)} of {Units.Count(layer.Pairs)} pairs; {Units.Count(layer.Blocks.Before)} blocks became {Units.Count(layer.Blocks.After)}.");
        if (!pictures.Any(picture => picture.Name.EndsWith(ScoresSuffix, StringComparison.Ordinal)))
            _page.Small("Everything was kept, so nothing was scored.");
        foreach (var picture in pictures)
            _page.Show(picture, picture.Name.EndsWith(ScoresSuffix, StringComparison.Ordinal) ? "Colours span the middle 98% of the scores; what lies beyond has the colour of that end." : null);
        _page.Table(["Sequence", .. Enumerable.Range(0, shape.KvHeads).Select(head => $"Head {head}")],
            [.. Enumerable.Range(0, shape.Sequences).Select(b => (string[])
                [$"{b} ({Units.Count(shape.LengthOf(b))} tokens)", .. layer.KeptLengths.Skip(b * shape.KvHeads).Take(shape.KvHeads).Select(length => Units.Count(length))])]);
    }

    /// <summary>The whole page.</summary>
    public string Html() => _page.Html;
}
