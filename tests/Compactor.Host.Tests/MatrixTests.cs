using System.Runtime.InteropServices;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>Products against float64 sums, for shapes with and without tails.</summary>
public sealed unsafe class MatrixTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("compactor-host-").FullName;

    public static TheoryData<int, int, int, SafetensorsType> Shapes()
    {
        var shapes = new TheoryData<int, int, int, SafetensorsType>();
        foreach (var type in (SafetensorsType[])[SafetensorsType.F32, SafetensorsType.F16, SafetensorsType.BF16])
            foreach (var (rows, inputs, outputs) in ((int, int, int)[])[(1, 1, 1), (1, 64, 16), (2, 33, 17), (6, 48, 31), (7, 20, 100), (13, 129, 513)])
                shapes.Add(rows, inputs, outputs, type);
        return shapes;
    }

    [Theory]
    [MemberData(nameof(Shapes))]
    public void Products_are_those_of_float64_sums(int rows, int inputs, int outputs, SafetensorsType type)
    {
        var random = new Random(rows * 1000 + inputs);
        float[] x = Uniform(random, rows * inputs), w = Uniform(random, outputs * inputs), bias = Uniform(random, outputs), before = Uniform(random, rows * outputs);
        using var matrix = Load(type, ref w, bias, outputs, inputs);
        float[] y = new float[rows * outputs], sum = [.. before];
        fixed (float* px = x, py = y, ps = sum)
        {
            matrix.Multiply(px, rows, py, new Cores(2));
            matrix.Multiply(px, rows, ps, new Cores(1), accumulate: true);
        }
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < outputs; j++)
            {
                double expected = bias[j];
                for (int k = 0; k < inputs; k++)
                    expected += (double)x[i * inputs + k] * w[j * inputs + k];
                Assert.Equal(expected, y[i * outputs + j], 2e-5);
                Assert.Equal(expected + before[i * outputs + j], sum[i * outputs + j], 2e-5);
            }
        var row = new float[inputs];
        matrix.CopyRow(outputs - 1, row);
        Assert.Equal(w[^inputs..], row);
    }

    [Theory]
    [InlineData(SafetensorsType.F32)]
    [InlineData(SafetensorsType.BF16)]
    public void A_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(SafetensorsType type)
    {
        const int rows = 11, inputs = 200, outputs = 600;
        var random = new Random(3);
        float[] x = Uniform(random, rows * inputs), w = Uniform(random, outputs * inputs), together = new float[rows * outputs], alone = new float[rows * outputs];
        using var matrix = Load(type, ref w, new float[outputs], outputs, inputs);
        fixed (float* px = x, pt = together, pa = alone)
        {
            matrix.Multiply(px, rows, pt, new Cores(4));
            for (int row = 0; row < rows; row++)
                matrix.Multiply(px + row * inputs, 1, pa + row * outputs, new Cores(1));
        }
        Assert.Equal(together, alone);
    }

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private static float[] Uniform(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => random.NextSingle() * 2 - 1)];

    /// <summary>Rounds w to the type, and packs it.</summary>
    private Matrix Load(SafetensorsType type, ref float[] w, float[] bias, int outputs, int inputs)
    {
        byte[] bytes = type switch
        {
            SafetensorsType.F32 => MemoryMarshal.AsBytes<float>(w).ToArray(),
            SafetensorsType.F16 => MemoryMarshal.AsBytes<Half>(w.Select(value => (Half)value).ToArray()).ToArray(),
            _ => MemoryMarshal.AsBytes<ushort>(w.Select(value => (ushort)(BitConverter.SingleToUInt32Bits(value) >> 16)).ToArray()).ToArray(),
        };
        string path = Path.Combine(_folder, "w.safetensors");
        var writer = new SafetensorsWriter();
        writer.Add("w", type, [outputs, inputs], bytes);
        writer.Add("bias", [outputs], bias);
        writer.Save(path);
        using var file = SafetensorsFile.Open(path);
        w = file.Tensors["w"].ToFloat32();
        return new Matrix(file.Tensors["w"], file.Tensors["bias"], new Cores(1));
    }
}
