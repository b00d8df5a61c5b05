using System.Text.Json;
using Compactor.Native;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>Tokenizers against the ids that the libraries of their authors give.</summary>
public sealed class TokenizerTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("compactor-host-").FullName;

    public static TheoryData<string> Tokenizers { get; } = ["llama3", "qwen2", "llama2"];

    [Theory]
    [MemberData(nameof(Tokenizers))]
    public void Texts_get_the_ids_of_the_reference_library(string name)
    {
        var tokenizer = TextTokenizer.Load(TestFiles.Data($"tokenizers/{name}"));
        foreach (var (text, expected) in Texts(name))
        {
            Assert.Equal((IEnumerable<int>)expected, [.. tokenizer.Begin, .. tokenizer.Encode(text)]);
        }
    }

    [Theory]
    [MemberData(nameof(Tokenizers))]
    public void Decoding_gives_the_text_back(string name)
    {
        var tokenizer = TextTokenizer.Load(TestFiles.Data($"tokenizers/{name}"));
        foreach (var (text, _) in Texts(name).Where(entry => name != "llama2" || !entry.Text.StartsWith('<')))
            Assert.Equal(name == "qwen2" ? NormalForm.Compose(text) : text, tokenizer.Decode(tokenizer.Encode(text)));
    }

    [Fact]
    public void A_template_says_what_begins_a_text_and_otherwise_the_configuration()
    {
        Assert.Equal([658], TextTokenizer.Load(TestFiles.Data("tokenizers/llama3")).Begin);
        Assert.Empty(TextTokenizer.Load(TestFiles.Data("tokenizers/qwen2")).Begin);
        Assert.Equal([1], TextTokenizer.Load(TestFiles.Data("tokenizers/llama2")).Begin);
        Assert.Equal([1], TextTokenizer.Load(TestFiles.Needle).Begin);
    }

    [Fact]
    public void Words_are_split_at_white_space_and_an_unknown_one_is_named()
    {
        var tokenizer = TextTokenizer.Load(TestFiles.Needle);
        int[] ids = tokenizer.Encode("One special\n magic number");
        Assert.Equal([2, 3, 4, 5], ids);
        Assert.Equal("One special magic number", tokenizer.Decode(ids));
        Assert.Contains("'unheard'", Assert.Throws<CompactorException>(() => tokenizer.Encode("One unheard word")).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("\"type\": \"BPE\"", "\"type\": \"Unigram\"", "Unigram")]
    [InlineData("\"byte_fallback\": false", "\"byte_fallback\": true", "Sequence")]
    [InlineData("\"behavior\": \"Isolated\"", "\"behavior\": \"Removed\"", "Removed")]
    [InlineData("\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}", "Lowercase")]
    [InlineData("\"merges\":", "\"mergers\":", "merges")]
    public void What_is_not_supported_is_named(string part, string other, string mention)
    {
        string json = JsonSerializer.Serialize(JsonDocument.Parse(File.ReadAllText(TestFiles.Data("tokenizers/llama3/tokenizer.json"))).RootElement, new JsonSerializerOptions { WriteIndented = true });
        Assert.Contains(part, json, StringComparison.Ordinal);
        File.WriteAllText(Path.Combine(_folder, "tokenizer.json"), json.Replace(part, other, StringComparison.Ordinal));
        Assert.Contains(mention, Assert.Throws<CompactorException>(() => TextTokenizer.Load(_folder)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Texts_are_brought_to_normal_form_C_without_the_help_of_the_machine()
    {
        using var document = JsonDocument.Parse(File.ReadAllText(TestFiles.Data("tokenizers/normal_forms.json")));
        foreach (var pair in document.RootElement.EnumerateArray())
        {
            string expected = pair[1].GetString()!;
            Assert.Equal(expected, NormalForm.Compose(pair[0].GetString()!), StringComparer.Ordinal);
            Assert.Equal(expected, NormalForm.Compose(expected), StringComparer.Ordinal);
        }
    }

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private static IEnumerable<(string Text, int[] Ids)> Texts(string name)
    {
        using var document = JsonDocument.Parse(File.ReadAllText(TestFiles.Data("tokenizers/texts.json")));
        foreach (var entry in document.RootElement.EnumerateArray())
            yield return (entry.GetProperty("text").GetString()!, [.. entry.GetProperty(name).EnumerateArray().Select(id => id.GetInt32())]);
    }
}
