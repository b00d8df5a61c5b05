using System.IO.Compression;
using System.Runtime.Intrinsics.X86;
using System.Security.Cryptography;
using System.Xml.Linq;
using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The packages, packed once into a local folder.</summary>
public sealed class PackageFeed : IDisposable
{
    public PackageFeed(NativeBuild build)
    {
        _ = build;
        foreach (string project in (string[])["Compactor.Native", "Compactor.Cli"])
            Pack(project, Folder);
        // the user's own settings stay; the packages under test come from the folder, and are unpacked beside it
        File.WriteAllText(Path.Combine(Scratch, "nuget.config"), $"""
            <configuration>
              <config><add key="globalPackagesFolder" value="{Path.Combine(Scratch, "unpacked")}" /></config>
              <packageSources><add key="local" value="{Folder}" /></packageSources>
              <fallbackPackageFolders><add key="machine" value="{Environment.GetEnvironmentVariable("NUGET_PACKAGES") ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".nuget", "packages")}" /></fallbackPackageFolders>
            </configuration>
            """);
    }

    /// <summary>A folder outside the repository.</summary>
    public string Scratch { get; } = Directory.CreateTempSubdirectory("compactor-packages-").FullName;

    public string Folder => Path.Combine(Scratch, "feed");

    public string Package(string name) => Directory.GetFiles(Folder, $"{name}.*.nupkg").Single();

    public static void Pack(string project, string folder, bool rebuild = false) => Command.Run("dotnet", ["build", Path.Combine(NativeBuild.Root, "src", project), "-c", "Release", "-v", "quiet",
        rebuild ? "-t:Rebuild;Pack" : "-t:Build;Pack", $"-p:PackageOutputPath={folder}", $"-p:CompactorSharedLibrary={NativeBuild.Library}"]);

    public void Dispose() => Directory.Delete(Scratch, recursive: true);
}

public class PackageTests(PackageFeed feed) : IClassFixture<PackageFeed>
{
    [Fact]
    public void Library_package_holds_what_it_should()
    {
        using var package = ZipFile.OpenRead(feed.Package("Compactor.Native"));
        string[] names = [.. package.Entries.Select(entry => entry.FullName)];
        foreach (string name in (string[])["lib/net10.0/Compactor.Native.dll", "lib/net10.0/Compactor.Native.xml", "runtimes/linux-x64/native/libcompactor_native.so", "include/compactor.h", "README.md", "LICENSE"])
            Assert.Contains(name, names);
        using var shared = package.GetEntry("runtimes/linux-x64/native/libcompactor_native.so")!.Open();
        Assert.Equal(SHA256.HashData(File.ReadAllBytes(NativeBuild.Library)), SHA256.HashData(shared));
        using var nuspec = package.GetEntry("Compactor.Native.nuspec")!.Open();
        var metadata = XDocument.Load(nuspec).Root!.Elements().Single();
        string? Value(string name) => metadata.Elements().SingleOrDefault(e => e.Name.LocalName == name)?.Value;
        Assert.Equal(("Apache-2.0", "README.md"), (Value("license"), Value("readme")));
        using var symbols = ZipFile.OpenRead(Path.ChangeExtension(feed.Package("Compactor.Native"), ".snupkg"));
        Assert.Contains("lib/net10.0/Compactor.Native.pdb", symbols.Entries.Select(entry => entry.FullName));
    }

    [Theory(Explicit = true)]
    [InlineData("Compactor.Native", "Compactor.Native")]
    [InlineData("Compactor.Cli", "compactor")]
    public void Building_and_packing_anew_gives_the_same_content_and_no_path_of_this_machine(string project, string name)
    {
        string again = Path.Combine(feed.Scratch, "again");
        PackageFeed.Pack(project, again, rebuild: true);
        var (first, second) = (Content(feed.Package(name)), Content(Directory.GetFiles(again, $"{name}.*.nupkg").Single()));
        Assert.Equal(first.Keys, second.Keys);
        Assert.All(first, file => Assert.True(file.Value.AsSpan().SequenceEqual(second[file.Key]), file.Key));
        byte[] root = System.Text.Encoding.UTF8.GetBytes(NativeBuild.Root);
        Assert.All(first, file => Assert.True(file.Value.AsSpan().IndexOf(root) < 0, $"{file.Key} names {NativeBuild.Root}"));

        // one file is named after a random number by the packing tool, and one names it
        static SortedDictionary<string, byte[]> Content(string package)
        {
            using var zip = ZipFile.OpenRead(package);
            var files = new SortedDictionary<string, byte[]>(StringComparer.Ordinal);
            foreach (var entry in zip.Entries.Where(entry => entry.Name != ".rels" && !entry.FullName.EndsWith(".psmdcp", StringComparison.Ordinal)))
            {
                using var stream = entry.Open();
                using var bytes = new MemoryStream();
                stream.CopyTo(bytes);
                files.Add(entry.FullName, bytes.ToArray());
            }
            return files;
        }
    }

    [Fact(Explicit = true)]
    public void Scratch_project_uses_the_package_as_managed_library_and_as_shared_library_and_published_ahead_of_time()
    {
        string project = Project("consumer", """
            <Project Sdk="Microsoft.NET.Sdk">
              <PropertyGroup>
                <OutputType>Exe</OutputType>
                <TargetFramework>net10.0</TargetFramework>
                <ImplicitUsings>enable</ImplicitUsings>
                <RuntimeIdentifier>linux-x64</RuntimeIdentifier>
                <PublishAot>true</PublishAot>
                <InvariantGlobalization>true</InvariantGlobalization>
                <TreatWarningsAsErrors>true</TreatWarningsAsErrors>
              </PropertyGroup>
              <ItemGroup>
                <PackageReference Include="Compactor.Native" Version="*" />
              </ItemGroup>
            </Project>
            """);
        File.WriteAllText(Path.Combine(project, "Program.cs"), """
            using System.Runtime.InteropServices;
            using Compactor.Native;
            using Compactor.Native.Compression;
            using Compactor.Native.Cpu;

            using var backend = new CpuBackend();
            using var keys = backend.Allocate<float>(200 * 2 * 32);
            var random = new Random(1);
            foreach (ref float x in keys.View.AsSpan())
                x = random.NextSingle() - 0.5f;
            var plan = new LayerPlan(new LayerShape([0, 200], 0, 2, 32, ElementType.Float32), CompressionPresets.Paper, Budget.Retention(0.5));
            var view = TensorView.Packed(keys.View.Address, ElementType.Float32, 200, 2, 32);
            using var selection = LayerCompressor.Select(backend, plan, new LayerInputs { Key = view, KeyPreRope = view, Value = view });
            Console.WriteLine($"managed {selection.KeptIndices.View.Length}");
            Console.WriteLine($"shared {Marshal.PtrToStringUTF8(Shared.compactor_version())}");

            internal static class Shared
            {
                [DllImport("compactor_native")]
                public static extern nint compactor_version();
            }
            """);
        Command.Run("dotnet", ["build", "-c", "Release", "-v", "quiet"], project);
        // the commit stands behind the + where it is known
        const string Expected = @"\Amanaged 240\nshared 0\.1\.0(\+[0-9a-f]{12})?\n\z";
        Assert.Matches(Expected, Command.Run("dotnet", ["exec", Path.Combine(project, "bin/Release/net10.0/linux-x64/consumer.dll")], project));
        string published = Path.Combine(project, "published");
        Command.Run("dotnet", ["publish", "-c", "Release", "-v", "quiet", "-o", published], project);
        Assert.False(File.Exists(Path.Combine(published, "consumer.dll")));
        Assert.Matches(Expected, Command.Run(Path.Combine(published, "consumer"), [], project));
    }

    [Fact]
    public void Onnx_runtime_sample_compresses_present_tensors_in_place()
    {
        string project = Path.Combine(feed.Scratch, "onnxruntime");
        Directory.CreateDirectory(project);
        foreach (string file in (string[])["OnnxRuntimeSample.csproj", "Model.cs", "Program.cs"])
            File.Copy(Path.Combine(NativeBuild.Root, "interop", "samples", "onnxruntime", file), Path.Combine(project, file));
        Command.Run("dotnet", ["build", "-c", "Release", "-v", "quiet"], project);
        Assert.Contains("in place", Command.Run("dotnet", ["exec", Path.Combine(project, "bin/Release/net10.0/OnnxRuntimeSample.dll")], project));
    }

    [Fact]
    public void Tool_package_installs_and_runs()
    {
        string tools = Path.Combine(feed.Scratch, "tools");
        Command.Run("dotnet", ["tool", "install", "compactor", "--tool-path", tools, "--configfile", Path.Combine(feed.Scratch, "nuget.config")], feed.Scratch);
        Assert.Contains("0.1.0", Command.Run(Path.Combine(tools, "compactor"), ["--version"], feed.Scratch));
        Assert.Contains("CPU", Command.Run(Path.Combine(tools, "compactor"), ["doctor"], feed.Scratch));
    }

    [Fact]
    public void CMake_package_installs_into_a_prefix_where_cmake_and_pkg_config_find_it()
    {
        string prefix = Path.Combine(feed.Scratch, "prefix"), consumer = Directory.CreateDirectory(Path.Combine(feed.Scratch, "c")).FullName;
        Command.Run("cmake", ["--install", NativeBuild.Folder, "--prefix", prefix]);
        File.Copy(Path.Combine(NativeBuild.Root, "interop", "samples", "c", "sample.c"), Path.Combine(consumer, "sample.c"));
        File.WriteAllText(Path.Combine(consumer, "CMakeLists.txt"), """
            cmake_minimum_required(VERSION 3.25)
            project(Consumer LANGUAGES C)
            find_package(Compactor 0.1 REQUIRED)
            add_executable(sample sample.c)
            target_link_libraries(sample PRIVATE Compactor::compactor m)
            """);
        Command.Run("cmake", ["-S", consumer, "-B", Path.Combine(consumer, "build"), $"-DCMAKE_PREFIX_PATH={prefix}"]);
        Command.Run("cmake", ["--build", Path.Combine(consumer, "build")]);
        string sample = Path.Combine(consumer, "build", "sample"), output = Command.Run(sample, []);
        Assert.Contains("0 handles left", output);
        Assert.Contains($"{(Avx512F.IsSupported ? 512 : 256)}-bit vectors", output);
        Assert.Contains("256-bit vectors", Command.Run("/lib64/ld-linux-x86-64.so.2", ["--glibc-hwcaps-mask", "x86-64-v3", sample]));

        string pkgConfig = Path.Combine(prefix, "lib", "pkgconfig");
        string[] flags = Command.Run("pkg-config", ["--cflags", "--libs", "compactor"], variables: ("PKG_CONFIG_PATH", pkgConfig)).Split([' ', '\n'], StringSplitOptions.RemoveEmptyEntries);
        Command.Run("cc", [Path.Combine(consumer, "sample.c"), "-o", Path.Combine(consumer, "by-pkg-config"), .. flags, "-lm"]);
        Assert.Contains("0 handles left", Command.Run(Path.Combine(consumer, "by-pkg-config"), [], variables: ("LD_LIBRARY_PATH", Path.Combine(prefix, "lib"))));
    }

    [Fact]
    public void CMake_installs_the_variant_as_its_option_says_and_leaves_none_of_before()
    {
        string build = Path.Combine(feed.Scratch, "given"), prefix = Path.Combine(feed.Scratch, "given-prefix"), variant = Path.Combine(prefix, "lib", "glibc-hwcaps", "x86-64-v4", "libcompactor_native.so");
        foreach (string option in (string[])["ON", "OFF", "ON"])
        {
            Command.Run("cmake", ["-S", NativeBuild.Root, "-B", build, $"-DCOMPACTOR_LIBRARY={NativeBuild.Library}", $"-DCOMPACTOR_AVX512={option}", "-DBUILD_TESTING=OFF"]);
            Command.Run("cmake", ["--build", build]);
            Command.Run("cmake", ["--install", build, "--prefix", prefix]);
            Assert.Equal(option == "ON", File.Exists(variant));
            Assert.True(File.Exists(Path.Combine(prefix, "lib", "libcompactor_native.so")));
        }
        string other = Path.Combine(feed.Scratch, "other.so");
        File.WriteAllText(other, "");
        foreach (var (library, message) in ((string, string)[])[(other, "Give a file named libcompactor_native.so"), (variant, "that is no variant in"), ("nowhere/libcompactor_native.so", "which is not a file")])
            Assert.Contains(message, string.Join(' ', Command.Run("cmake", ["-S", NativeBuild.Root, "-B", build, $"-DCOMPACTOR_LIBRARY={library}"], exitCode: 1).Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries)));
    }

    private string Project(string name, string content)
    {
        string folder = Directory.CreateDirectory(Path.Combine(feed.Scratch, name)).FullName;
        File.WriteAllText(Path.Combine(folder, name + ".csproj"), content);
        return folder;
    }
}
