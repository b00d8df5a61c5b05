using System.Text.RegularExpressions;

namespace Compactor.Abi.Tests;

/// <summary>compactor.h as text, without its comments.</summary>
internal static partial class Header
{
    private static readonly string Text = Whitespace().Replace(Comments().Replace(File.ReadAllText(NativeBuild.Header), " "), " ");

    /// <summary>Names of enumeration constants and their values.</summary>
    public static Dictionary<string, int> Constants { get; } = EnumConstant().Matches(Text).ToDictionary(m => m.Groups[1].Value, m => int.Parse(m.Groups[2].Value));

    /// <summary>Structs and the names of their fields, in order.</summary>
    public static Dictionary<string, string[]> Structs { get; } = Struct().Matches(Text).ToDictionary(m => m.Groups[1].Value,
        m => m.Groups[2].Value.Split(';', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries).Select(field => FieldName().Match(field).Groups[1].Value).ToArray());

    /// <summary>Functions: what they return, and the types of their parameters.</summary>
    public static Dictionary<string, (string Result, string[] Parameters)> Functions { get; } = Function().Matches(Text).ToDictionary(m => m.Groups[2].Value,
        m => (Type(m.Groups[1].Value), m.Groups[3].Value.Trim() == "void" ? [] : m.Groups[3].Value.Split(',').Select(p => Type(FieldName().Replace(p, " "))).ToArray()));

    /// <summary>Value of a macro.</summary>
    public static string Macro(string name) => Regex.Match(File.ReadAllText(NativeBuild.Header), $@"#define {name} (\S+)").Groups[1].Value;

    private static string Type(string type) => type.Replace("const ", "", StringComparison.Ordinal).Replace(" ", "", StringComparison.Ordinal);

    [GeneratedRegex(@"/\*.*?\*/", RegexOptions.Singleline)]
    private static partial Regex Comments();

    [GeneratedRegex(@"\s+")]
    private static partial Regex Whitespace();

    [GeneratedRegex(@"(COMPACTOR_\w+) = (\d+)")]
    private static partial Regex EnumConstant();

    [GeneratedRegex(@"typedef struct (\w+) \{ (.*?) \} \1;")]
    private static partial Regex Struct();

    [GeneratedRegex(@"(\w+)(\[\d+\])? ?$")]
    private static partial Regex FieldName();

    [GeneratedRegex(@"(compactor_status|const char \*|uint32_t) ?(compactor_\w+)\(([^)]*)\);")]
    private static partial Regex Function();
}
