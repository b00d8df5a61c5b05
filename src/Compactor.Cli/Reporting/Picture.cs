using ScottPlot;
using ScottPlot.TickGenerators;

namespace Compactor.Cli.Reporting;

/// <summary>A PNG picture of the report.</summary>
/// <param name="Name">File name.</param>
/// <param name="Description">What it shows, for those who do not see it.</param>
/// <param name="Png">The file.</param>
/// <param name="Width">Pixels.</param>
/// <param name="Height">Pixels.</param>
internal sealed record Picture(string Name, string Description, byte[] Png, int Width, int Height)
{
    /// <summary>Width of all pictures, and the right margin where legends and scales stand, in points of <see cref="Scale"/> pixels.</summary>
    public const int WidthInPoints = 840, LegendWidth = 168;

    private const float Scale = 1.5f, FontSize = 14, TitleSize = 16;

    /// <summary>Okabe and Ito's colours, which people with any colour vision can tell apart.</summary>
    public static readonly Color
        Blue = Color.FromHex("#0072B2"), Orange = Color.FromHex("#D55E00"), Green = Color.FromHex("#009E73"), Purple = Color.FromHex("#CC79A7"),
        Grey = Color.FromHex("#7F7F7F"), Light = Color.FromHex("#DCE3EA"), Dark = Color.FromHex("#222222");

    /// <summary>An empty plot with a title above it, labelled axes, and room at the right for a legend.</summary>
    public static Plot NewPlot(string title, string x, string y)
    {
        BundledFont.Use();
        var plot = new Plot { ScaleFactor = Scale };
        plot.FigureBackground.Color = Colors.White;
        plot.Title(title, TitleSize);
        plot.Axes.Title.Label.Bold = false;
        plot.Axes.Title.Label.ForeColor = Dark;
        plot.XLabel(x, FontSize);
        plot.YLabel(y, FontSize);
        foreach (var axis in plot.Axes.GetAxes())
        {
            axis.Label.Bold = false;
            axis.Label.ForeColor = Dark;
            axis.TickLabelStyle.FontSize = FontSize - 1;
            axis.TickLabelStyle.ForeColor = Dark;
            axis.MinorTickStyle.Length = 0;
        }
        plot.Axes.Bottom.TickGenerator = new NumericAutomatic { LabelFormatter = value => Units.Count((long)value), IntegerTicksOnly = true };
        plot.Axes.Right.FrameLineStyle.IsVisible = false;
        plot.Axes.Top.FrameLineStyle.IsVisible = false;
        plot.Grid.MajorLineColor = Color.FromHex("#E4E4E4");
        plot.Layout.Fixed(new PixelPadding(74, LegendWidth, 52, 42));
        return plot;
    }

    /// <summary>A legend at the right of the data, never over it.</summary>
    public static void Legend(Plot plot)
    {
        var panel = plot.ShowLegend(Edge.Right);
        panel.Alignment = Alignment.UpperLeft;
        plot.Legend.FontSize = FontSize - 1;
        plot.Legend.FontColor = Dark;
        plot.Legend.OutlineWidth = 0;
        plot.Legend.ShadowColor = Colors.Transparent;
        plot.Legend.BackgroundColor = Colors.Transparent;
    }

    /// <summary>A legend entry with a filled square.</summary>
    public static LegendItem Swatch(string text, Color color) => new() { LabelText = text, FillColor = color, LineWidth = 0, LabelFontSize = FontSize - 1 };

    /// <summary>Renders a plot.</summary>
    public static Picture Render(Plot plot, string name, string description, int heightInPoints)
    {
        int width = (int)(WidthInPoints * Scale), height = (int)(heightInPoints * Scale);
        return new Picture(name, description, plot.GetImageBytes(width, height, ImageFormat.Png), width, height);
    }
}
