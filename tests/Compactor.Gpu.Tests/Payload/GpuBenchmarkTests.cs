using System.Diagnostics;
using System.Text.Json;
using Compactor.Gpu.Bench;
using Compactor.Gpu.Tests.Simt;
using Compactor.Native.Gpu;
using Xunit;

namespace Compactor.Gpu.Tests.Payload;

/// <summary>The GPU benchmark on the emulator, where its times mean nothing: every operation runs, on every copy of its inputs, and bytes and flops are those counted by hand.</summary>
public class GpuBenchmarkTests
{
    private const int Repeats = 3;

    private static readonly BenchModel s_model = new("tiny", QueryHeads: 4, KvHeads: 2, HeadDim: 64);

    [Fact]
    public void Every_operation_is_measured_and_its_bytes_and_flops_are_counted()
    {
        using var device = new EmulatedDevice(cacheBytes: 40_000);
        var (benchmark, lines) = Run(device, TimeSpan.MaxValue);
        Assert.True(benchmark.IsComplete);
        var root = Json(benchmark);
        // The emulator multiplies no matrices, so that nothing is said of the floor of what may be bound by them.
        Assert.Equal(JsonValueKind.Null, root.GetProperty("matrix_product_teraflops").ValueKind);
        Assert.Contains("SIMT emulator", root.GetProperty("device").GetString());
        const double KeyBytes = 300 * 2 * 64 * 2, KeptPairs = (150 + 4 + 16) * 2;
        (string Name, double Bytes, double Flops, int Copies, bool HasFloor)[] expected =
        [
            ("leverage, chunk 512", KeyBytes, 0, 3, true),
            ("leverage, whole sequence", 2 * KeyBytes, 0, 3, true),
            ("attention scores, C 256", 3 * KeyBytes, 2.0 * 300 * 256 * 4 * 64, 1, false),
            ("fuse and select", 0, 0, 1, false),
            ("compact, r 0.5", 4 * KeptPairs * 64 * 2, 0, 2, true),
            ("decode attention, r 0.5, 2 sequences", 2 * 2 * 2 * 150 * 64 * 2, 0, 1, true),
            ("whole layer, paper, r 0.5", 0, 0, 3, false),
        ];
        var operations = root.GetProperty("operations").EnumerateArray().ToArray();
        Assert.Equal(expected, operations.Select(o => (o.GetProperty("name").GetString()!, o.GetProperty("bytes").GetDouble(), o.GetProperty("flops").GetDouble(),
            o.GetProperty("copies").GetInt32(), o.GetProperty("share_of_floor").ValueKind == JsonValueKind.Number)));
        Assert.All(operations, o =>
        {
            double[] samples = [.. o.GetProperty("samples_microseconds").EnumerateArray().Select(sample => sample.GetDouble()).Order()];
            Assert.Equal(Repeats, samples.Length);
            Assert.True(o.GetProperty("queueing_microseconds").GetDouble() > 0);
            Assert.True(o.GetProperty("replaying_microseconds").GetDouble() > 0);
            Assert.Equal((samples[0], samples[1], samples[2]), (o.GetProperty("least_microseconds").GetDouble(), o.GetProperty("median_microseconds").GetDouble(), o.GetProperty("most_microseconds").GetDouble()));
            Assert.True(samples[0] > 0);
        });
        Assert.Equal(operations.Length, lines.Split('\n').Count(line => line.StartsWith("tiny", StringComparison.Ordinal)));
    }

    [Fact]
    public void What_time_did_not_suffice_for_is_named()
    {
        using var device = new EmulatedDevice(cacheBytes: 1);
        var (benchmark, lines) = Run(device, TimeSpan.Zero);
        Assert.False(benchmark.IsComplete);
        Assert.Contains("not measured, time was over: tiny, N 300", lines);
        Assert.Equal("tiny, N 300", Json(benchmark).GetProperty("not_measured")[0].GetString());
    }

    [Fact]
    public void The_floor_is_memory_or_the_matrix_product_whichever_takes_longer()
    {
        // L8 at 131072 tokens on the ceilings of an H200, as the headers of the kernels say: 63, 126 and 348 us.
        var floors = new Floors(4.3e6, 790e6);
        Assert.Equal(62.4, Of(268.4e6, 0), 0.5);
        Assert.Equal(124.9, Of(536.9e6, 0), 0.5);
        Assert.Equal(348, Of(1.342e9, 2.0 * 131_072 * 256 * 32 * 128), 0.5);
        Assert.Null(new Floors(4.3e6, null).Of(new Operation("", s_model, 1, 1, 1, null!, [])));

        double Of(double bytes, double flops) => floors.Of(new Operation("", s_model, 1, bytes, flops, null!, []))!.Value;
    }

    private static (GpuBenchmark Benchmark, string Lines) Run(EmulatedDevice device, TimeSpan limit)
    {
        using var lines = new StringWriter();
        var benchmark = new GpuBenchmark(device, Repeats, limit, lines);
        int measured = 0;
        benchmark.Run([s_model], [300], sequences: 2, copyBytes: 1 << 16, measured: () => Assert.Equal(++measured, Json(benchmark).GetProperty("operations").GetArrayLength()));
        return (benchmark, lines.ToString());
    }

    private static JsonElement Json(GpuBenchmark benchmark)
    {
        using var stream = new MemoryStream();
        benchmark.WriteJson(stream);
        return JsonDocument.Parse(stream.ToArray()).RootElement;
    }

    private sealed class EmulatedDevice : BenchDevice
    {
        private readonly SimtDriver _driver = new() { ChecksRaces = false };
        private readonly GpuStream _stream;

        public EmulatedDevice(long cacheBytes)
        {
            CacheBytes = cacheBytes;
            _stream = _driver.CreateStream();
            Backend = new GpuBackend(_driver, _stream);
        }

        public override GpuBackend Backend { get; }

        public override IReadOnlyList<(string Name, string Value)> Facts => [("device", Backend.Description)];

        public override long CacheBytes { get; }

        public override long FreeBytes => 1L << 30;

        public override string? NoMatrixProduct => "the emulator multiplies no matrices";

        public override void Copy(nint from, nint to, long bytes)
        {
            nint between = _driver.AllocateHost(bytes);
            _driver.CopyToHost(from, between, bytes, _stream);
            _driver.CopyToDevice(between, to, bytes, _stream);
            _stream.Synchronize();
            _driver.FreeHost(between);
        }

        public override void MultiplyMatrices(nint a, nint b, nint c, int n) => throw new InvalidOperationException(NoMatrixProduct);

        public override Action Repeatable(GpuBackend backend, Action work) => work;

        public override double Microseconds(Action work)
        {
            long start = Stopwatch.GetTimestamp();
            work();
            _stream.Synchronize();
            return Stopwatch.GetElapsedTime(start).TotalMicroseconds;
        }

        public override void Dispose() => Backend.Dispose();
    }
}
