using Compactor.Host.Evaluation;
using Compactor.Native;
using Xunit;

namespace Compactor.Host.Tests.Evaluation;

public sealed class RetrievalTaskTests
{
    private static int Words(string text) => text.Split(' ').Length;

    public static TheoryData<string> Tasks => [.. RetrievalTask.All.Select(task => task.Name)];

    /// <summary>What a reader finds of a name or key, told sentence by sentence: an oracle that knows nothing of how contexts are made.</summary>
    private static List<string> Read(string context, string name)
    {
        const string before = "One special magic number for ";
        var found = new List<string>();
        foreach (string sentence in context.Split(" .").Select(s => s.Trim()))
            if (sentence.StartsWith(before + name + " is ", StringComparison.Ordinal))
                found.Add(sentence[(before + name + " is ").Length..]);
            else if (sentence.StartsWith($"VAR {name} = VAR ", StringComparison.Ordinal))
                found.AddRange(Read(context, sentence.Split(' ')[^1]));
            else if (sentence.StartsWith($"VAR {name} = ", StringComparison.Ordinal))
                found.Add(sentence[$"VAR {name} = ".Length..]);
        return found;
    }

    [Theory]
    [MemberData(nameof(Tasks))]
    public void A_reader_of_the_context_answers_every_question_and_no_question_is_in_it(string name)
    {
        var task = RetrievalTask.Named(name);
        foreach (int length in (int[])[256, 512, 1024, 5000])
            for (ulong seed = 0; seed < 20; seed++)
            {
                var sample = task.Create(length, seed, Words);
                Assert.DoesNotContain("What", sample.Context);
                Assert.DoesNotContain("?", sample.Context);
                Assert.NotEmpty(sample.Questions);
                foreach (var (prompt, answer) in sample.Questions.SelectMany(question => question.Parts))
                {
                    string asked = prompt.Split(" ?")[0].Split(' ')[^1];
                    Assert.EndsWith($"{asked} is", prompt);
                    Assert.Equal(string.Join(" , ", Read(sample.Context, asked)) + " .", answer);
                }
            }
    }

    [Theory]
    [MemberData(nameof(Tasks))]
    public void Context_and_questions_fill_the_length_and_never_exceed_it(string name)
    {
        foreach (int length in (int[])[256, 777, 1024, 4096])
            for (ulong seed = 0; seed < 20; seed++)
            {
                var sample = RetrievalTask.Named(name).Create(length, seed, Words);
                int used = Words(sample.Context) + sample.Questions.Sum(question => Words(question.Text));
                // The longest sentence, which may not have fitted, has 13 words.
                Assert.InRange(used, length - 12, length);
            }
    }

    [Theory]
    [MemberData(nameof(Tasks))]
    public void A_seed_gives_one_sample_and_another_seed_another(string name)
    {
        var task = RetrievalTask.Named(name);
        var (a, b, c) = (task.Create(600, 5, Words), task.Create(600, 5, Words), task.Create(600, 6, Words));
        Assert.Equal((a.Context, string.Join('|', a.Questions.Select(q => q.Text))), (b.Context, string.Join('|', b.Questions.Select(q => q.Text))));
        Assert.NotEqual(a.Context, c.Context);
    }

    [Fact]
    public void Facts_stand_anywhere_in_the_context()
    {
        var places = Enumerable.Range(0, 400).Select(seed => RetrievalTask.Named("single-noise").Create(1024, (ulong)seed, Words))
            .Select(sample => sample.Context.IndexOf("One special", StringComparison.Ordinal) / (double)sample.Context.Length).ToArray();
        Assert.InRange(places.Average(), 0.44, 0.54);
        Assert.InRange(places.Count(place => place < 0.1), 20, 60);
        Assert.InRange(places.Count(place => place > 0.9), 15, 60);
    }

    [Fact]
    public void Every_sentence_of_a_key_haystack_could_have_been_asked_for()
    {
        string context = RetrievalTask.Named("single-keys").Create(1024, 3, Words).Context;
        Assert.All(context.TrimEnd('.', ' ').Split(" . "), sentence => Assert.StartsWith("One special magic number for ", sentence));
    }

    [Fact]
    public void A_length_that_does_not_hold_the_facts_is_refused_with_the_length_that_does()
    {
        var exception = Assert.Throws<CompactorException>(() => RetrievalTask.Named("multi-value").Create(100, 1, Words));
        int needed = int.Parse(exception.Message.Split("hold the ")[1].Split(' ')[0]);
        Assert.Throws<CompactorException>(() => RetrievalTask.Named("multi-value").Create(needed - 1, 1, Words));
        Assert.NotEmpty(RetrievalTask.Named("multi-value").Create(needed, 1, Words).Context);
    }

    [Fact]
    public void An_unknown_task_is_answered_with_the_known_ones() =>
        Assert.Contains("single-noise, single-essay", Assert.Throws<CompactorException>(() => RetrievalTask.Named("niah")).Message);
}
