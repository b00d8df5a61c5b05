using System.Collections.Concurrent;
using System.Text;
using System.Text.Json;
using Compactor.Native.Compression;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;
using Xunit;

namespace Compactor.Gpu.Tests;

/// <summary>Every kernel the product plans for the models of the catalogue compiles to machine code without spills, by both compilers; the table of resources is current.</summary>
public class KernelResourcesTests
{
    private static readonly int[] s_architectures = [80, 86, 89, 90];

    private static readonly string s_table = Path.Combine(Nvrtc.Repository, "bench", "results", "kernel-resources.json");

    [Fact]
    public void The_table_of_the_reference_model_is_current() =>
        Assert.True(File.Exists(s_table) && File.ReadAllText(s_table) == Table(), $"{s_table} is not what the kernels compile to; write it again: Compactor.Gpu.Tests --explicit only --filter-method '*Write_the_table*'");

    [Fact(Explicit = true)]
    [Trait("Writes", "results")]
    public void Write_the_table() => File.WriteAllText(s_table, Table());

    [Theory]
    [InlineData("12.4")]
    [InlineData("11.8")]
    public void Kernels_of_the_reference_model_fit_and_do_not_spill(string version) => AssertFits(version, [KernelCatalog.Models[0]], version == "12.4" ? s_architectures : [90]);

    [Theory(Explicit = true)]
    [InlineData("12.4")]
    [InlineData("11.8")]
    public void Every_kernel_fits_and_does_not_spill(string version) => AssertFits(version, KernelCatalog.Models, version == "12.4" ? s_architectures : [90]);

    [Fact(Explicit = true)]
    public void The_older_compiler_does_so_for_every_architecture() => AssertFits("11.8", [KernelCatalog.Models[0]], s_architectures);

    private static void AssertFits(string version, IEnumerable<KernelModel> models, int[] architectures)
    {
        var rows = Rows(version, models, architectures);
        string[] wrong =
        [
            .. from row in rows where row.Resources.StackBytes > 0 select $"{row.Kernel.Variant} sm_{row.Architecture} spills {row.Resources.StackBytes} bytes",
            .. from row in rows where row.Resources.MostThreads != row.Kernel.Threads select $"{row.Kernel.Variant} is compiled for {row.Resources.MostThreads} threads and launched with {row.Kernel.Threads}",
            .. from row in rows where row.BlocksPerMultiprocessor < 1 select $"{row.Kernel.Variant} sm_{row.Architecture} does not fit: {row.Resources.Registers} registers, {row.SharedBytes} bytes of shared memory",
        ];
        Assert.True(wrong.Length == 0, string.Join('\n', wrong));
    }

    private static string Table()
    {
        using var stream = new MemoryStream();
        using (var json = new Utf8JsonWriter(stream))
        {
            json.WriteStartArray();
            foreach (var row in Rows("12.4", [KernelCatalog.Models[0]], s_architectures))
                row.WriteJson(json);
            json.WriteEndArray();
        }
        // A kernel a line, so that a change shows what it changes.
        return Encoding.UTF8.GetString(stream.ToArray()).Replace("[{", "[\n{").Replace("},{", "},\n{").Replace("}]", "}\n]\n");
    }

    /// <summary>Compiled once a run, and kept between runs: the key of an entry is the hash of its sources.</summary>
    private static List<KernelReport> Rows(string version, IEnumerable<KernelModel> models, int[] architectures)
    {
        var planned = (from architecture in architectures
                       let limits = Occupancy.LimitsOf(architecture) with { HopperKernels = architecture == KernelLibrary.SpecificArchitecture && new Version(version) >= CompileTarget.SpecificSince }
                       from model in models
                       from preset in CompressionPresets.ByName.Values
                       from kernel in KernelCatalog.Plan(model, preset, limits)
                       select (Architecture: architecture, Kernel: kernel)).Distinct().ToList();
        var images = new ConcurrentDictionary<(string, int), IReadOnlyDictionary<string, KernelResources>>();
        Parallel.ForEach(planned.DistinctBy(p => (p.Kernel.Variant.Module, p.Architecture)), p =>
        {
            string folder = Path.Combine(Nvrtc.Repository, "tests", ".nvrtc", "kernels-" + version);
            var library = new KernelLibrary(p.Architecture, new Version(version), new KernelCache(folder, [], message => throw new InvalidOperationException(message)), () => Nvrtc.Of(version));
            images[(p.Kernel.Variant.Module, p.Architecture)] = CubinResources.Read(library.Get(p.Kernel.Variant).Image);
        });
        return [.. planned.Select(p => new KernelReport(p.Kernel, p.Architecture, images[(p.Kernel.Variant.Module, p.Architecture)][p.Kernel.Variant.Entry]))
            .OrderBy(row => row.Kernel.Variant.ToString(), StringComparer.Ordinal).ThenBy(row => row.Architecture)];
    }
}
