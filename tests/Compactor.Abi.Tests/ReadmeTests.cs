using System.Text.RegularExpressions;
using Compactor.Native;
using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The README's C# samples, put together as one program with the memory they take as given, compile and run.</summary>
public partial class ReadmeTests
{
    private const string Memory = """
        using System.Runtime.InteropServices;

        nint keyAddress = Memory.Random(8192 * 8), valueAddress = Memory.Random(8192 * 8), queryAddress = Memory.Random(8192 * 32);
        nint newKeyAddress = Memory.Random(8), newValueAddress = Memory.Random(8), newQueryAddress = Memory.Random(32);

        """;

    private const string Check = """

        Console.WriteLine($"{tokens.Length} kept, {cache.Blocks - cache.FreeBlocks} blocks, output finite {float.IsFinite(output.View.AsSpan().ToArray().Sum())}");

        internal static class Memory
        {
            private static readonly List<Half[]> s_kept = [];
            private static readonly Random s_random = new(1);

            /// <summary>Rows of 128 halves that stay in place.</summary>
            public static nint Random(int rows)
            {
                var values = GC.AllocateUninitializedArray<Half>(rows * 128, pinned: true);
                foreach (ref var value in values.AsSpan())
                    value = (Half)(s_random.NextSingle() - 0.5f);
                s_kept.Add(values);
                return Marshal.UnsafeAddrOfPinnedArrayElement(values, 0);
            }
        }
        """;

    [Fact]
    public void Samples_compile_and_run()
    {
        string readme = File.ReadAllText(Path.Combine(NativeBuild.Root, "README.md"));
        string[] samples = [.. Sample().Matches(readme).Select(match => match.Groups[1].Value)];
        Assert.Equal(2, samples.Length);
        string code = string.Concat(samples);
        string imports = string.Concat(Import().Matches(code).Select(match => match.Value).Distinct());
        string folder = Directory.CreateTempSubdirectory("compactor-readme-").FullName;
        try
        {
            File.WriteAllText(Path.Combine(folder, "Program.cs"), imports + Memory + Import().Replace(code, "") + Check);
            File.WriteAllText(Path.Combine(folder, "readme.csproj"), $"""
                <Project Sdk="Microsoft.NET.Sdk">
                  <PropertyGroup>
                    <OutputType>Exe</OutputType>
                    <TargetFramework>net10.0</TargetFramework>
                    <ImplicitUsings>enable</ImplicitUsings>
                    <Nullable>enable</Nullable>
                    <TreatWarningsAsErrors>true</TreatWarningsAsErrors>
                  </PropertyGroup>
                  <ItemGroup>
                    <Reference Include="{typeof(KvBackend).Assembly.Location}" />
                    <Reference Include="{typeof(System.Numerics.Tensors.TensorPrimitives).Assembly.Location}" />
                  </ItemGroup>
                </Project>
                """);
            Command.Run("dotnet", ["build", "-c", "Release", "-v", "quiet", "-o", Path.Combine(folder, "out")], folder);
            string said = Command.Run("dotnet", ["exec", Path.Combine(folder, "out", "readme.dll")], folder);
            Assert.Matches(@"^\d+ kept, \d+ blocks, output finite True\n$", said);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [GeneratedRegex("```csharp\n(.*?)```", RegexOptions.Singleline)]
    private static partial Regex Sample();

    [GeneratedRegex(@"^using [A-Z][\w.]*;\n", RegexOptions.Multiline)]
    private static partial Regex Import();
}
