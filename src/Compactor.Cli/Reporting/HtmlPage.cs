using System.Net;
using System.Text;

namespace Compactor.Cli.Reporting;

/// <summary>A page of HTML with its pictures inside, no script, nothing to fetch.</summary>
internal sealed class HtmlPage
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

    private readonly StringBuilder _html = new();

    /// <summary>Begins a page.</summary>
    /// <param name="title">Title and heading.</param>
    /// <param name="summary">What it comes to.</param>
    /// <param name="about">How it was made.</param>
    public HtmlPage(string title, string summary, string about) => _html.Append(
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
        <p>{Text(summary)}</p>
        <p class="soft">{Text(about)}</p>

        """);

    /// <summary>The whole page.</summary>
    public string Html => $"{_html}</body>\n</html>\n";

    /// <summary>A heading.</summary>
    public void Heading(string text) => _html.AppendLine($"<h2>{Text(text)}</h2>");

    /// <summary>A paragraph.</summary>
    public void Paragraph(string text) => _html.AppendLine($"<p>{Text(text)}</p>");

    /// <summary>A paragraph that explains.</summary>
    public void Small(string text) => _html.AppendLine($"<p class=\"soft\">{Text(text)}</p>");

    /// <summary>Figures side by side.</summary>
    public void Figures(params IEnumerable<(string Figure, string What)> figures) => _html.AppendLine("<div class=\"figures\">")
        .AppendJoin("", figures.Select(figure => $"<div><b>{Text(figure.Figure)}</b>{Text(figure.What)}</div>\n")).AppendLine("</div>");

    /// <summary>A picture.</summary>
    public void Show(Picture picture, string? caption) => _html.AppendLine(
        $"<figure><div class=\"wide\"><img alt=\"{Text(picture.Description)}\" width=\"{picture.Width}\" height=\"{picture.Height}\" " +
        $"src=\"data:image/png;base64,{Convert.ToBase64String(picture.Png)}\"></div>{(caption is null ? "" : $"<figcaption>{Text(caption)}</figcaption>")}</figure>");

    /// <summary>A table whose first column is of names.</summary>
    public void Table(string[] headers, string[][] rows, bool lastIsSum = false)
    {
        _html.Append("<div class=\"wide\"><table><tr>").AppendJoin("", headers.Select(header => $"<th>{Text(header)}</th>")).AppendLine("</tr>");
        for (int i = 0; i < rows.Length; i++)
            _html.Append(lastIsSum && i == rows.Length - 1 ? "<tr class=\"all\">" : "<tr>").AppendJoin("", rows[i].Select(cell => $"<td>{Text(cell)}</td>")).AppendLine("</tr>");
        _html.AppendLine("</table></div>");
    }

    /// <summary>A table that opens on demand.</summary>
    public void Details(string summary, string[] headers, string[][] rows)
    {
        _html.AppendLine($"<details><summary>{Text(summary)}</summary>");
        Table(headers, rows);
        _html.AppendLine("</details>");
    }

    private static string Text(string text) => WebUtility.HtmlEncode(text.Replace("->", "→", StringComparison.Ordinal));
}
