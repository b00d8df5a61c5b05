using System.Numerics;

namespace Compactor.Host;

/// <summary>RMS norm: <c>y = x / sqrt(mean(x²) + eps) · weight</c>, over the last dimension.</summary>
internal sealed unsafe class Norm(float[] weight, float epsilon)
{
    public int Size => weight.Length;

    /// <summary>Normalises rows of <see cref="Size"/> elements; x and y may be the same.</summary>
    public void Apply(float* x, float* y, long rows)
    {
        int n = weight.Length, lanes = Vector<float>.Count;
        fixed (float* w = weight)
            for (long row = 0; row < rows; row++, x += n, y += n)
            {
                var squares = Vector<float>.Zero;
                int i = 0;
                for (; i <= n - lanes; i += lanes)
                {
                    var value = Vector.Load(x + i);
                    squares = Vector.FusedMultiplyAdd(value, value, squares);
                }
                float sum = Vector.Sum(squares);
                for (; i < n; i++)
                    sum += x[i] * x[i];
                float scale = 1 / MathF.Sqrt(sum / n + epsilon);
                for (i = 0; i <= n - lanes; i += lanes)
                    (Vector.Load(x + i) * scale * Vector.Load(w + i)).Store(y + i);
                for (; i < n; i++)
                    y[i] = x[i] * scale * w[i];
            }
    }
}
