using System.Diagnostics;
using System.Runtime.InteropServices;
using Compactor.Native.Cuda;
using Xunit;

namespace Compactor.Native.Tests.Cuda;

public sealed class LibrarySearchTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("compactor-search-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private static SearchEnvironment Only(params (string Name, string Value)[] variables)
    {
        var values = variables.ToDictionary(v => v.Name, v => v.Value);
        return new SearchEnvironment { Variable = values.GetValueOrDefault, UseLoader = false, ToolkitFolders = [], PackageFolders = [] };
    }

    private string Build(string path, string source)
    {
        Assert.SkipUnless(RuntimeInformation.IsOSPlatform(OSPlatform.Linux) && File.Exists("/usr/bin/gcc"), "needs gcc on Linux");
        string full = Path.Combine(_folder, path);
        Directory.CreateDirectory(Path.GetDirectoryName(full)!);
        File.WriteAllText(full + ".c", source);
        using var gcc = Process.Start("/usr/bin/gcc", ["-shared", "-fPIC", "-o", full, full + ".c"]);
        gcc.WaitForExit();
        Assert.Equal(0, gcc.ExitCode);
        File.Delete(full + ".c");
        return full;
    }

    private string FakeNvrtc(string path, int major, int minor) =>
        Build(path, $"int nvrtcVersion(int* major, int* minor) {{ *major = {major}; *minor = {minor}; return 0; }}");

    [Fact]
    public void An_explicit_path_to_nothing_is_an_error_and_nothing_is_chosen()
    {
        FakeNvrtc("cuda/lib64/libnvrtc.so.12", 12, 4);
        var search = LibrarySearch.Nvrtc(Only(("COMPACTOR_NVRTC", "/nowhere/libnvrtc.so"), ("CUDA_HOME", Path.Combine(_folder, "cuda"))));
        Assert.Null(search.Found);
        Assert.Contains("COMPACTOR_NVRTC is '/nowhere/libnvrtc.so', which does not exist", search.Error);
        Assert.Equal(LibraryOutcome.NotPresent, search.Candidates[0].Outcome);
        Assert.Contains(search.Candidates, c => c.Outcome == LibraryOutcome.Found);
    }

    [Fact]
    public void The_parameter_comes_before_the_variable()
    {
        string path = FakeNvrtc("libmine.so", 11, 8);
        var search = LibrarySearch.Nvrtc(Only(("COMPACTOR_NVRTC", "/nowhere/libnvrtc.so")) with { NvrtcPath = path });
        Assert.Null(search.Error);
        Assert.Equal(path, search.Found?.Place);
        Assert.Equal(new Version(11, 8), search.Found?.Version);
    }

    [Fact]
    public void A_library_under_CUDA_HOME_is_found_once_whatever_links_point_to_it()
    {
        string path = FakeNvrtc("cuda/lib64/libnvrtc.so.12.4.127", 12, 4);
        File.CreateSymbolicLink(Path.Combine(_folder, "cuda/lib64/libnvrtc.so.12"), path);
        File.CreateSymbolicLink(Path.Combine(_folder, "cuda/lib64/libnvrtc.so"), path);
        var search = LibrarySearch.Nvrtc(Only(("CUDA_HOME", Path.Combine(_folder, "cuda"))));
        var found = Assert.Single(search.Candidates, c => c.Outcome == LibraryOutcome.Found);
        Assert.Same(found, search.Found);
        Assert.Equal(new Version(12, 4), found.Version);
        Assert.Equal("CUDA_HOME", found.Source);
        Assert.Contains(search.Candidates, c => c.Place == Path.Combine(_folder, "cuda/lib/libnvrtc.so*") && c.Outcome == LibraryOutcome.NotPresent);
    }

    [Fact]
    public void A_wheel_in_a_virtual_environment_is_found_and_its_builtins_are_not_taken_for_it()
    {
        string folder = "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib";
        FakeNvrtc($"{folder}/libnvrtc.so.12", 12, 8);
        FakeNvrtc($"{folder}/libnvrtc-builtins.so.12.8", 0, 0);
        var search = LibrarySearch.Nvrtc(Only(("VIRTUAL_ENV", Path.Combine(_folder, "venv"))));
        Assert.Equal(new Version(12, 8), search.Found?.Version);
        Assert.Equal("wheel", search.Found?.Source);
        Assert.DoesNotContain(search.Candidates, c => c.Place.Contains("builtins", StringComparison.Ordinal));
    }

    [Fact]
    public void What_cannot_be_used_says_why_and_the_search_goes_on()
    {
        string cuda = Path.Combine(_folder, "cuda");
        FakeNvrtc("cuda/lib/libnvrtc.so", 12, 0);
        Build("cuda/lib64/libnvrtc.so.12", "int something_else;");
        File.WriteAllText(Path.Combine(cuda, "lib64/libnvrtc.so.13"), "no library at all");
        var search = LibrarySearch.Nvrtc(Only(("CUDA_PATH", cuda)));
        Assert.Equal([LibraryOutcome.Failed, LibraryOutcome.Failed, LibraryOutcome.Found], search.Candidates.Take(3).Select(c => c.Outcome));
        Assert.Contains("exports no nvrtcVersion", search.Candidates[0].Reason);
        Assert.NotEmpty(search.Candidates[1].Reason!);
        Assert.DoesNotContain('\n', search.Candidates[1].Reason!);
        Assert.Equal(new Version(12, 0), search.Found?.Version);
    }

    [Fact]
    public void Names_the_loader_does_not_know_are_not_present()
    {
        var search = LibrarySearch.Driver(SearchEnvironment.Current);
        Assert.NotEmpty(search.Candidates);
        Assert.All(search.Candidates, c => Assert.Equal(c.Outcome == LibraryOutcome.Failed, c.Reason is not null));
    }
}
