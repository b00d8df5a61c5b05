using ScottPlot;
using SkiaSharp;

namespace Compactor.Cli.Reporting;

/// <summary>The one typeface of all pictures. It is part of the tool, because a server may have no fonts, and pictures are the same on every machine.</summary>
internal sealed class BundledFont : IFontResolver
{
    private const string Resource = "Compactor.Cli.Reporting.Fonts.DejaVuSans.ttf";

    private static readonly SKTypeface s_typeface = Load();

    private static readonly Lazy<BundledFont> s_used = new(() =>
    {
        var font = new BundledFont();
        Fonts.FontResolvers.Insert(0, font);
        return font;
    });

    /// <summary>Makes ScottPlot draw all text with it; any thread may call it.</summary>
    public static void Use() => _ = s_used.Value;

    public SKTypeface CreateTypeface(string fontName, FontWeight weight, FontSlant slant, FontSpacing spacing) => s_typeface;

    public SKTypeface CreateTypeface(string fontName, bool bold, bool italic) => s_typeface;

    private static SKTypeface Load()
    {
        using var stream = typeof(BundledFont).Assembly.GetManifestResourceStream(Resource)!;
        using var data = SKData.Create(stream);
        return SKTypeface.FromData(data);
    }
}
