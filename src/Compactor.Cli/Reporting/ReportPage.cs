using System.Net;
using System.Text;

namespace Compactor.Cli.Reporting;

/// <summary>The page: HTML with its pictures inside, no script, nothing to fetch.</summary>
internal sealed class ReportPage
{
    private const string Style = """
        :root { color-scheme: light dark; --ink: #1d2329; --soft: #59636e; --line: #d5dbe1; --back: #ffffff; --card: #f5f7f9; }
        @media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #38424c; --back: #14181c; --card: #1d2329; } }
        body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 0 auto; padding: 1rem; max-width: 64rem; }
        h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
        h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
        p { margin: .5rem 0; max-width: 48rem; }
        .soft, figcaption { color: var(--soft); font-size: .9rem; }
        figure { margin: 1rem 0; }
        .wide { overflow-x: auto; }
        img { display: block; width: 100%; min-width: 36rem; max-width: 52.5rem; height: auto; background: #fff; border-radius: 6px; }
        @media (prefers-color-scheme: dark) { img { filter: brightness(.88); } }
        table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
        th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
        th { color: var(--soft); font-weight: 600; }
        th:first-child, td:first-child { text-align: left; }
        tr.all td { font-weight: 600; }
        .figures { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
        .figures div { background: var(--card); border-radius: 6px; padding: .6rem .9rem; }
        .figures b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
        summary { cursor: pointer; color: var(--soft); }
        """;

    /// <summary>How the names of pictures of scores end.</summary>
    public const string ScoresSuffix = "-scores.png";

    private readonly StringBuilder _html = new();
    private readonly CompressionReport _report;

    public ReportPage(CompressionReport report, string input)
    {
        _report = report;
        string title = $"{input}, compressed";
        var (settings, blocks) = (report.Settings, report.Blocks);
        _html.Append(
            $"""
            <!DOCTYPE html>
            <html lang="en">
            <head>
            <meta charset="utf-8">
            <meta name="viewport" content="width=device-width, initial-scale=1">
            {ReportFolder.Mark}
            <title>{Text(title)}</title>
            <style>
            {Style}
            </style>
            </head>
            <body>
            <h1>{Text(title)}</h1>
            <p>{Text(report.Summary())}</p>
            <p class="soft">{Text($"{settings.Preset} preset, {settings.Budget}{report.Protection()}; {report.Backend}; compactor {CompressionSettings.ToolVersion}.")}</p>

            """);
        foreach (string note in report.Notes)
            _html.AppendLine($"<p class=\"soft\">Note: {Text(note)}</p>");
        _html.AppendLine("<div class=\"figures\">");
        Figure(Units.Percent(report.Pairs == 0 ? 1 : (double)report.KeptPairs / report.Pairs), "of all pairs kept");
        Figure($"{Units.Count(blocks.Before)} -> {Units.Count(blocks.After)}", $"blocks of {settings.BlockSize} tokens");
        Figure(Units.Bytes(blocks.BytesReturned), "returned to the pool");
        Figure(Units.Percent(blocks.UnusedShare.After), "of taken slots unused");
        if (report.Mean(e => e.Compressed) is { } error)
            Figure(Units.Percent(error), "error of outputs");
        _html.AppendLine("</div>");

        string[] headers = ["Layer", "Pairs", "Blocks", "Returned", "Unused slots", "Error", "Random", "Recent"];
        Table(headers, [
            .. report.Layers.Select(l => Row(l.Number ?? "-", l.Pairs, l.Plan.KeptPairs, l.Blocks, l.Errors)),
            .. report.Layers.Count == 1 ? [] : (string[][])[Row("all", report.Pairs, report.KeptPairs, blocks,
                report.Mean(e => e.Compressed) is { } all ? new LayerErrors(all, report.Mean(e => e.Random)!.Value, report.Mean(e => e.Recent)!.Value) : null)],
        ], lastIsSum: report.Layers.Count > 1);
        _html.AppendLine($"<p class=\"soft\">{Text($"Returned: bytes of the blocks that the pool got back. Unused slots: slots of taken blocks that hold no token, before and after. {report.AboutErrors()}")}</p>");

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
        _html.AppendLine("<h2>Error against what is kept</h2>");
        Show(picture, $"Retention 5% to 100% in steps of 5%; what the method protects is kept beside it, and counts. {_report.AboutErrors()} The dotted line is this run.");
        var policies = ErrorPicture.Policies.Where(p => curves.Errors.ContainsKey(p.Policy)).ToArray();
        _html.AppendLine("<details><summary>Figures</summary>");
        Table(["Retention", "Kept", .. policies.Select(p => p.Label)],
            [.. Enumerable.Range(0, curves.Retention.Length).Select(i => (string[])
                [Units.Percent(curves.Retention[i]), Units.Percent(curves.KeptShare[i]), .. policies.Select(p => Units.Percent(curves.Errors[p.Policy][i]))])]);
        _html.AppendLine("</details>");
    }

    /// <summary>Lengths of the heads.</summary>
    public void AddLengths(Picture picture)
    {
        _html.AppendLine("<h2>Lengths of the heads</h2>");
        Show(picture, $"Heads need not keep equally many tokens. Blocks hold {_report.Settings.BlockSize} tokens of one head, so the last block of a head is partly unused.");
    }

    /// <summary>One layer.</summary>
    public void AddLayer(LayerReport layer, IReadOnlyList<Picture> pictures)
    {
        var shape = layer.Plan.Shape;
        _html.AppendLine($"<h2>{Text(layer.Number is { } number ? $"Layer {number}" : "The layer")}</h2>");
        _html.AppendLine($"<p>{Text(
            $"{Units.Count(shape.Tokens)} tokens, {shape.KvHeads} KV heads of dimension {shape.HeadDim}, {shape.ElementType}. " +
            $"Kept {Units.Count(layer.Plan.KeptPairs)} of {Units.Count(layer.Pairs)} pairs; {Units.Count(layer.Blocks.Before)} blocks became {Units.Count(layer.Blocks.After)}.")}</p>");
        if (!pictures.Any(picture => picture.Name.EndsWith(ScoresSuffix, StringComparison.Ordinal)))
            _html.AppendLine("<p class=\"soft\">Everything was kept, so nothing was scored.</p>");
        foreach (var picture in pictures)
            Show(picture, picture.Name.EndsWith(ScoresSuffix, StringComparison.Ordinal) ? "Colours span the middle 98% of the scores; what lies beyond has the colour of that end." : null);
        Table(["Sequence", .. Enumerable.Range(0, shape.KvHeads).Select(head => $"Head {head}")],
            [.. Enumerable.Range(0, shape.Sequences).Select(b => (string[])
                [$"{b} ({Units.Count(shape.LengthOf(b))} tokens)", .. layer.KeptLengths.Skip(b * shape.KvHeads).Take(shape.KvHeads).Select(length => Units.Count(length))])]);
    }

    /// <summary>The whole page.</summary>
    public string Html() => $"{_html}</body>\n</html>\n";

    private static string Text(string text) => WebUtility.HtmlEncode(text.Replace("->", "→", StringComparison.Ordinal));

    private void Figure(string figure, string what) => _html.AppendLine($"<div><b>{Text(figure)}</b>{Text(what)}</div>");

    private void Show(Picture picture, string? caption) => _html.AppendLine(
        $"<figure><div class=\"wide\"><img alt=\"{Text(picture.Description)}\" width=\"{picture.Width}\" height=\"{picture.Height}\" " +
        $"src=\"data:image/png;base64,{Convert.ToBase64String(picture.Png)}\"></div>{(caption is null ? "" : $"<figcaption>{Text(caption)}</figcaption>")}</figure>");

    private void Table(string[] headers, string[][] rows, bool lastIsSum = false)
    {
        _html.Append("<div class=\"wide\"><table><tr>").AppendJoin("", headers.Select(header => $"<th>{Text(header)}</th>")).AppendLine("</tr>");
        for (int i = 0; i < rows.Length; i++)
            _html.Append(lastIsSum && i == rows.Length - 1 ? "<tr class=\"all\">" : "<tr>").AppendJoin("", rows[i].Select(cell => $"<td>{Text(cell)}</td>")).AppendLine("</tr>");
        _html.AppendLine("</table></div>");
    }
}
