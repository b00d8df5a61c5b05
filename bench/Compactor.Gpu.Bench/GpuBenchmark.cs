using System.Diagnostics;
using System.Globalization;
using System.Reflection;
using System.Text.Json;
using Compactor.Native;

namespace Compactor.Gpu.Bench;

/// <summary>Times operations of models at lengths, beside the ceilings of the same device in the same run.</summary>
/// <param name="device">The device.</param>
/// <param name="repeats">Timed repeats of each; their median counts.</param>
/// <param name="limit">When to stop before the next operation.</param>
/// <param name="output">Receives a line for everything measured.</param>
internal sealed class GpuBenchmark(BenchDevice device, int repeats, TimeSpan limit, TextWriter output)
{
    private const int Warmups = 2;

    private readonly long _start = Stopwatch.GetTimestamp();
    private readonly List<Measurement> _measured = [];
    private readonly List<string> _left = [];
    private Floors? _floors;

    /// <param name="models">Layers.</param>
    /// <param name="tokens">Lengths N.</param>
    /// <param name="only">Text that the names of operations hold; all operations where there is none.</param>
    /// <param name="sequences">Sequences that are decoded at once.</param>
    /// <param name="copyBytes">Bytes of the copy that measures memory.</param>
    /// <param name="rows">Rows of the matrices that are multiplied.</param>
    /// <param name="measured">Called after every operation.</param>
    public void Run(IReadOnlyList<BenchModel> models, IReadOnlyList<int> tokens, IReadOnlyList<string>? only = null, int sequences = 32, long copyBytes = 1L << 30, int rows = 8192, Action? measured = null)
    {
        foreach (var (name, value) in device.Facts)
            output.WriteLine($"{name}: {value}");
        _floors = new Floors(MeasureCopy(copyBytes), device.NoMatrixProduct is null ? MeasureProduct(rows) : null);
        output.WriteLine(Line($"copy {_floors.BytesPerMicrosecond / 1e6:F2} TB/s read and written; matrix product {(_floors.FlopsPerMicrosecond is { } flops ? Line($"{flops / 1e6:F0} TFLOP/s") : device.NoMatrixProduct)}"));
        foreach (int n in tokens)
            foreach (var model in models)
            {
                if (IsOver)
                {
                    _left.Add($"{model.Name}, N {n}");
                    continue;
                }
                using var layer = new RotatedLayer(device, model, n, sequences);
                foreach (var (name, make) in layer.Operations())
                {
                    if (only is { Count: > 0 } && !only.Any(name.Contains))
                        continue;
                    if (IsOver)
                    {
                        _left.Add($"{name}, {model.Name}, N {n}");
                        continue;
                    }
                    _measured.Add(Measure(make()));
                    output.WriteLine(Describe(_measured[^1]));
                    measured?.Invoke();
                    layer.Release();
                }
            }
        foreach (string left in _left)
            output.WriteLine($"not measured, time was over: {left}");
    }

    /// <summary>Whether everything asked for was measured.</summary>
    public bool IsComplete => _left.Count == 0;

    private bool IsOver => Stopwatch.GetElapsedTime(_start) > limit;

    /// <summary>Everything, for machines.</summary>
    public void WriteJson(Stream stream)
    {
        using var json = new Utf8JsonWriter(stream, new JsonWriterOptions { Indented = true });
        json.WriteStartObject();
        json.WriteString("benchmark", "GPU operations");
        json.WriteString("date", DateTime.UtcNow.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
        // the commit that the library was built from, which the SDK puts behind its version
        json.WriteString("commit", typeof(KvBackend).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+') is [_, var commit] ? commit : null);
        foreach (var (name, value) in device.Facts)
            json.WriteString(name.Replace(' ', '_'), value);
        json.WriteNumber("cache_bytes", device.CacheBytes);
        json.WriteNumber("repeats", repeats);
        json.WriteNumber("copy_gigabytes_per_second", Rounded(_floors!.BytesPerMicrosecond / 1e3));
        Nullable(json, "matrix_product_teraflops", _floors.FlopsPerMicrosecond / 1e6);
        json.WriteStartArray("operations");
        foreach (var measured in _measured)
        {
            var operation = measured.Operation;
            json.WriteStartObject();
            json.WriteString("name", operation.Name);
            json.WriteString("model", operation.Model.Name);
            json.WriteNumber("tokens", operation.Tokens);
            json.WriteNumber("copies", operation.Variants.Count);
            json.WriteNumber("bytes", operation.Bytes);
            json.WriteNumber("flops", operation.Flops);
            json.WriteNumber("median_microseconds", Rounded(measured.Median));
            json.WriteNumber("least_microseconds", Rounded(measured.Microseconds.Min()));
            json.WriteNumber("most_microseconds", Rounded(measured.Microseconds.Max()));
            json.WriteStartArray("samples_microseconds");
            foreach (double microseconds in measured.Microseconds)
                json.WriteNumberValue(Rounded(microseconds));
            json.WriteEndArray();
            json.WriteNumber("queueing_microseconds", Rounded(Measurement.MedianOf(measured.HostMicroseconds)));
            json.WriteNumber("replaying_microseconds", Rounded(Measurement.MedianOf(measured.ReplayMicroseconds)));
            Nullable(json, "floor_microseconds", _floors.Of(operation));
            Nullable(json, "share_of_floor", _floors.Of(operation) / measured.Median);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteStartArray("not_measured");
        foreach (string left in _left)
            json.WriteStringValue(left);
        json.WriteEndArray();
        json.WriteEndObject();
    }

    private Measurement Measure(Operation operation)
    {
        List<double> times = [], host = [], replay = [];
        int count = operation.Variants.Count;
        // Kernels are compiled and memory is there after the first round.
        foreach (var variant in operation.Variants)
            variant();
        var round = device.Repeatable(operation.Backend, () =>
        {
            foreach (var variant in operation.Variants)
                variant();
        });
        for (int i = 0; i < Warmups; i++)
            device.Microseconds(round);
        for (int i = 0; i < repeats; i++)
            times.Add(device.Microseconds(round) / count);
        for (int i = 0; i < repeats; i++)
            host.Add(HostMicroseconds(operation.Variants[i % count]));
        for (int i = 0; i < repeats; i++)
            replay.Add(HostMicroseconds(round));
        return new Measurement(operation, times, host, replay);
    }

    /// <summary>What queueing something costs the host's thread while the device has nothing else to do.</summary>
    private double HostMicroseconds(Action work)
    {
        double queued = 0;
        device.Microseconds(() =>
        {
            long start = Stopwatch.GetTimestamp();
            work();
            queued = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
        });
        return queued;
    }

    private double MeasureCopy(long bytes)
    {
        using BackendBuffer<byte> from = device.Backend.Allocate<byte>(bytes), to = device.Backend.Allocate<byte>(bytes);
        return 2.0 * bytes / Median(() => device.Copy(from.View.Address, to.View.Address, bytes));
    }

    private double MeasureProduct(int rows)
    {
        long bytes = 2L * rows * rows;
        using BackendBuffer<byte> a = device.Backend.Allocate<byte>(bytes), b = device.Backend.Allocate<byte>(bytes), c = device.Backend.Allocate<byte>(bytes);
        byte[] bits = new byte[Math.Min(bytes, 1 << 24)];
        // Random bits of small numbers: a product of zeros would draw less power, and run faster, than any other.
        var random = new Random(1);
        random.NextBytes(bits);
        for (int i = 1; i < bits.Length; i += 2)
            bits[i] = (byte)(bits[i] & 0x80 | 0x3f);
        foreach (var matrix in (BackendBuffer<byte>[])[a, b])
            for (long at = 0; at < bytes; at += bits.Length)
                device.Backend.Upload<byte>(bits.AsSpan(0, (int)Math.Min(bits.Length, bytes - at)), matrix.View.Slice(at, Math.Min(bits.Length, bytes - at)));
        return 2.0 * rows * rows * rows / Median(() => device.MultiplyMatrices(a.View.Address, b.View.Address, c.View.Address, rows));
    }

    private double Median(Action work)
    {
        for (int i = 0; i < Warmups; i++)
            device.Microseconds(work);
        return Measurement.MedianOf(Enumerable.Range(0, repeats).Select(_ => device.Microseconds(work)));
    }

    private string Describe(Measurement measured)
    {
        var operation = measured.Operation;
        string rate = operation.Flops > 0 ? Line($"{operation.Flops / measured.Median / 1e6,7:F1} TFLOP/s") : operation.Bytes > 0 ? Line($"{operation.Bytes / measured.Median / 1e3,7:F1} GB/s") : "";
        string share = _floors!.Of(operation) is { } floor ? Line($"{floor / measured.Median,5:P0} of the floor of {floor:F1} us") : "";
        return Line($"{operation.Model.Name,-12} N {operation.Tokens,7}  {operation.Name,-46} {measured.Median,10:F1} us  (queued in {Measurement.MedianOf(measured.HostMicroseconds):F0} us, a graph of {operation.Variants.Count} in {Measurement.MedianOf(measured.ReplayMicroseconds):F0})  {rate,-16}  {share}").TrimEnd();
    }

    private static double Rounded(double value) => Math.Round(value, 4);

    private static void Nullable(Utf8JsonWriter json, string name, double? value)
    {
        if (value is { } number)
            json.WriteNumber(name, Rounded(number));
        else
            json.WriteNull(name);
    }

    private static string Line(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
