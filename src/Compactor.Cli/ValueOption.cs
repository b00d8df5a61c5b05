using System.CommandLine;
using System.Globalization;
using System.Numerics;

namespace Compactor.Cli;

/// <summary>Options of one value whose errors say what is accepted.</summary>
internal static class ValueOption
{
    /// <summary>A number, read and written the same way on every machine.</summary>
    public static Option<T?> Number<T>(string name, string description, string helpName = "n") where T : struct, INumberBase<T> =>
        Create<T>(name, description, helpName, typeof(T) == typeof(double) ? "a number" : typeof(T) == typeof(ulong) ? $"a whole number from 0 to {ulong.MaxValue}" : typeof(T) == typeof(long) ? $"a whole number up to {long.MaxValue}" : $"a whole number up to {int.MaxValue}",
            text => T.TryParse(text, typeof(T) == typeof(double) ? NumberStyles.Float : NumberStyles.Integer, CultureInfo.InvariantCulture, out var value) ? value : null);

    /// <summary>One of a few names.</summary>
    public static Option<T?> Choice<T>(string name, string description, params (string Name, T Value)[] choices) where T : struct
    {
        string names = string.Join('|', choices.Select(c => c.Name));
        var option = Create<T>(name, description, names, names.Replace("|", " or ", StringComparison.Ordinal),
            text => choices.Where(c => c.Name == text).Select(c => (T?)c.Value).FirstOrDefault());
        option.CompletionSources.Add([.. choices.Select(c => c.Name)]);
        return option;
    }

    /// <summary>Anything that <paramref name="parse"/> understands; it returns null for what it does not.</summary>
    public static Option<T?> Create<T>(string name, string description, string helpName, string accepted, Func<string, T?> parse) where T : struct =>
        new(name)
        {
            Description = description,
            HelpName = helpName,
            Arity = ArgumentArity.ExactlyOne,
            CustomParser = result =>
            {
                string text = result.Tokens[0].Value;
                var value = parse(text);
                if (value is null)
                    result.AddError($"{name} is '{text}'; use {accepted}.");
                return value;
            },
        };
}
