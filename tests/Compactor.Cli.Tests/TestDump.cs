using System.Runtime.InteropServices;
using Compactor.Native.Compression;
using Compactor.Native.Io;

namespace Compactor.Cli.Tests;

/// <summary>A small random cache to be saved as a dump, and changed before that.</summary>
internal sealed class TestDump
{
    public const int QueryHeads = 4, KvHeads = 2, Dim = 32;
    public const double Theta = 10000;

    public Dictionary<string, (SafetensorsType Type, long[] Shape, byte[] Bytes)> Tensors { get; } = [];

    public TestDump(int layers = 2, int[]? cuSeqlens = null, bool numbered = true)
    {
        int[] offsets = cuSeqlens ?? [0, 200];
        int tokens = offsets[^1];
        for (int i = 0; i < layers; i++)
        {
            string prefix = numbered ? $"layers.{i}." : "";
            float[] keys = Noise(tokens * KvHeads * Dim, (uint)(10 * i + 1));
            AddHalf(prefix + "key_pre_rope", [tokens, KvHeads, Dim], keys);
            AddHalf(prefix + "key", [tokens, KvHeads, Dim], Rotated(keys, offsets));
            AddHalf(prefix + "value", [tokens, KvHeads, Dim], Noise(tokens * KvHeads * Dim, (uint)(10 * i + 2)));
            AddHalf(prefix + "query", [tokens, QueryHeads, Dim], Noise(tokens * QueryHeads * Dim, (uint)(10 * i + 3)));
        }
        if (cuSeqlens is not null)
            Tensors["cu_seqlens"] = (SafetensorsType.I32, [cuSeqlens.Length], MemoryMarshal.AsBytes<int>(cuSeqlens).ToArray());
    }

    public TestDump Without(string role)
    {
        foreach (string name in Tensors.Keys.Where(n => n == role || n.EndsWith("." + role, StringComparison.Ordinal)).ToList())
            Tensors.Remove(name);
        return this;
    }

    /// <summary>Sets one element of a float16 tensor.</summary>
    public TestDump With(string name, int index, Half value)
    {
        MemoryMarshal.Cast<byte, Half>(Tensors[name].Bytes.AsSpan())[index] = value;
        return this;
    }

    public string Save(string path)
    {
        var writer = new SafetensorsWriter();
        foreach (var (name, (type, shape, bytes)) in Tensors)
            writer.Add(name, type, shape, bytes);
        writer.Save(path);
        return path;
    }

    private void AddHalf(string name, long[] shape, float[] values) =>
        Tensors[name] = (SafetensorsType.F16, shape, MemoryMarshal.AsBytes<Half>(values.Select(x => (Half)x).ToArray()).ToArray());

    private static float[] Noise(int length, uint stream)
    {
        var values = new float[length];
        Span<double> four = stackalloc double[4];
        for (int i = 0; i < length; i++)
        {
            Philox.Normals((uint)i, stream, 0, 0, 3, four);
            values[i] = (float)(Half)four[0];
        }
        return values;
    }

    private static float[] Rotated(float[] keys, int[] cuSeqlens)
    {
        var rotated = (float[])keys.Clone();
        for (int row = 0; row < keys.Length / Dim; row++)
        {
            int packed = row / KvHeads, token = packed - cuSeqlens.Last(start => start <= packed);
            for (int i = 0; i < Dim / 2; i++)
            {
                var (sin, cos) = Math.SinCos(token * Math.Pow(Theta, -2.0 * i / Dim));
                double x = keys[row * Dim + i], y = keys[row * Dim + i + Dim / 2];
                rotated[row * Dim + i] = (float)(cos * x - sin * y);
                rotated[row * Dim + i + Dim / 2] = (float)(sin * x + cos * y);
            }
        }
        return rotated;
    }
}
