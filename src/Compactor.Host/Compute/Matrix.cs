using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using Compactor.Native.Io;

namespace Compactor.Host;

/// <summary>
/// Weights of a linear layer, <c>[outputs, inputs]</c>, stored as panels of <see cref="MatrixTile.Columns"/> outputs, <c>[panels, inputs, columns]</c>, which multiplication
/// reads front to back. BF16 stays 16 bits wide, F16 and F32 are kept as float32. <c>y = x·Wᵀ + bias</c>.
/// </summary>
internal sealed unsafe class Matrix : IDisposable
{
    /// <summary>Multiply-adds that are worth a thread.</summary>
    private const long WorthThread = 1 << 16;

    private readonly byte* _panels;
    private readonly float[]? _bias;
    private readonly bool _half;
    private bool _disposed;

    /// <summary>Packs a tensor, which is not needed afterwards.</summary>
    /// <param name="tensor">Weights <c>[outputs, inputs]</c>.</param>
    /// <param name="bias"><c>[outputs]</c>, or null.</param>
    /// <param name="cores">What to pack with.</param>
    public Matrix(SafetensorsTensor tensor, SafetensorsTensor? bias, Cores cores)
    {
        (Outputs, Inputs) = ((int)tensor.Shape[0], (int)tensor.Shape[1]);
        _half = tensor.Type == SafetensorsType.BF16;
        if (bias is not null)
            Array.Resize(ref _bias, Panels * MatrixTile.Columns);
        bias?.ToFloat32().CopyTo(_bias!, 0);
        _panels = (byte*)NativeMemory.AlignedAlloc((nuint)(Panels * PanelBytes), 64);
        cores.For(Panels, panel => Pack(tensor, panel));
    }

    /// <summary>Outputs, rows of W.</summary>
    public int Outputs { get; }

    /// <summary>Inputs, columns of W.</summary>
    public int Inputs { get; }

    private int Panels => (Outputs + MatrixTile.Columns - 1) / MatrixTile.Columns;

    private long PanelBytes => (long)Inputs * MatrixTile.Columns * ElementSize;

    private int ElementSize => _half ? BFloat16Panel.ElementSize : Float32Panel.ElementSize;

    /// <summary>Multiplies rows.</summary>
    /// <param name="x"><c>[rows, inputs]</c>.</param>
    /// <param name="rows">Rows.</param>
    /// <param name="y">Receives <c>[rows, outputs]</c>.</param>
    /// <param name="cores">What to compute with.</param>
    /// <param name="accumulate">Whether y is added to.</param>
    public void Multiply(float* x, int rows, float* y, Cores cores, bool accumulate = false)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        long work = (long)rows * Inputs * Outputs;
        int parts = cores.Threads == 1 ? 1 : (int)Math.Min(Math.Min(Panels, 4L * cores.Threads), Math.Max(1, work / WorthThread));
        cores.For(parts, part =>
        {
            int end = (int)((long)Panels * (part + 1) / parts);
            fixed (float* bias = _bias)
                for (int panel = (int)((long)Panels * part / parts); panel < end; panel++)
                {
                    int column = panel * MatrixTile.Columns, columns = Math.Min(MatrixTile.Columns, Outputs - column);
                    byte* b = _panels + panel * PanelBytes;
                    float* panelBias = bias == null ? null : bias + column;
                    nint step = (nint)MatrixTile.Columns * ElementSize;
                    if (_half)
                        MatrixTile<BFloat16Panel>.Rows(x, Inputs, rows, b, step, Inputs, y + column, Outputs, columns, panelBias, accumulate);
                    else
                        MatrixTile<Float32Panel>.Rows(x, Inputs, rows, b, step, Inputs, y + column, Outputs, columns, panelBias, accumulate);
                }
        });
    }

    /// <summary>One row of W: the embedding of a token.</summary>
    /// <param name="row">Row.</param>
    /// <param name="destination">Receives the inputs' weights.</param>
    public void CopyRow(int row, Span<float> destination)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        byte* panel = _panels + row / MatrixTile.Columns * PanelBytes;
        int column = row % MatrixTile.Columns;
        for (int k = 0; k < Inputs; k++)
        {
            long at = (long)k * MatrixTile.Columns + column;
            destination[k] = _half ? BitConverter.UInt32BitsToSingle((uint)((ushort*)panel)[at] << 16) : ((float*)panel)[at];
        }
    }

    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        NativeMemory.AlignedFree(_panels);
    }

    private void Pack(SafetensorsTensor tensor, int panel)
    {
        byte* destination = _panels + panel * PanelBytes;
        new Span<byte>(destination, checked((int)PanelBytes)).Clear();
        var row = new float[Inputs];
        for (int column = 0; column < MatrixTile.Columns && panel * MatrixTile.Columns + column < Outputs; column++)
        {
            long bytes = (long)Inputs * tensor.Type.Size();
            var source = tensor.Bytes((panel * MatrixTile.Columns + column) * bytes, (int)bytes);
            if (_half)
            {
                var halves = MemoryMarshal.Cast<byte, ushort>(source);
                for (int k = 0; k < Inputs; k++)
                    ((ushort*)destination)[(long)k * MatrixTile.Columns + column] = halves[k];
                continue;
            }
            if (tensor.Type == SafetensorsType.F16)
                TensorPrimitives.ConvertToSingle(MemoryMarshal.Cast<byte, Half>(source), row);
            else
                MemoryMarshal.Cast<byte, float>(source).CopyTo(row);
            for (int k = 0; k < Inputs; k++)
                ((float*)destination)[(long)k * MatrixTile.Columns + column] = row[k];
        }
    }
}
