using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>What kernels report of bad input: words in device memory that are read back behind the work.</summary>
public sealed unsafe partial class GpuBackend
{
    /// <summary>The status word of cuda/status.cuh, and the count of scores that were not finite.</summary>
    private const int StatusWords = 2;

    private readonly BackendBuffer<ulong> _status;

    private ulong StatusAddress => (ulong)_status.View.Address;

    private ulong NonFiniteAddress => StatusAddress + sizeof(ulong);

    /// <inheritdoc/>
    public override ScoringStatus TakeStatus(LayerPlan plan)
    {
        var words = AllocateHost<ulong>(StatusWords);
        Download(_status.View, words.View);
        Clear(_status.View);
        return new QueuedStatus(plan.Shape, words, Record());
    }

    private sealed class QueuedStatus(LayerShape shape, BackendBuffer<ulong> words, BackendEvent read) : ScoringStatus
    {
        private const int NonFiniteKey = 1, NonFiniteQuery = 2, FactorizationFailed = 3, NonFiniteScore = 4;

        private CompactorException? _failure;
        private long _nonFiniteScores;
        private bool _known;

        public override bool IsKnown => _known || read.HasPassed;

        public override long NonFiniteScores
        {
            get
            {
                Know();
                return _nonFiniteScores;
            }
        }

        public override void ThrowIfFailed()
        {
            Know();
            if (_failure is not null)
                throw new CompactorException(_failure.Status, _failure.Message);
        }

        public override void Dispose()
        {
            if (_known)
                return;
            _known = true;
            // The words may still be written; memory given back must not be.
            try
            {
                read.Wait();
            }
            finally
            {
                read.Dispose();
                words.Dispose();
            }
        }

        private void Know()
        {
            if (_known)
                return;
            read.Wait();
            ulong nonFiniteScores = words.View.AsSpan()[1];
            (_failure, _nonFiniteScores) = (Decode(words.View.AsSpan()[0], nonFiniteScores), (long)nonFiniteScores);
            Dispose();
        }

        private CompactorException? Decode(ulong word, ulong nonFiniteScores)
        {
            if (word == 0)
                return null;
            word = ~word;
            int code = (int)(word >> 56), place = (int)(word >> 20), head = (int)(word & 0xFFFFF);
            int sequence = 0, rows = shape.IsRagged ? shape.KvHeads : 1;
            while (sequence + 1 < shape.Sequences && shape.CuSeqlens[(sequence + 1) * rows] <= place)
                sequence++;
            int token = place - shape.CuSeqlens[shape.IsRagged && code == NonFiniteScore ? sequence * rows + head : sequence * rows];
            string where = $"at {(shape.IsRagged ? "slot" : "token")} {token} of sequence {sequence}, head {head}";
            return code switch
            {
                NonFiniteKey or NonFiniteQuery => new(CompactorStatus.NonFinite,
                    $"Layer {shape.Layer}: {(code == NonFiniteKey ? "key" : "query")} holds NaN or infinity {where}. Scores of such a cache mean nothing; check what wrote it."),
                FactorizationFailed => new(CompactorStatus.FactorizationFailed,
                    $"Layer {shape.Layer}: the Gram matrix of keys could not be factorised, {where}, though eps was raised. Check the magnitude of the keys, or raise Epsilon."),
                NonFiniteScore => new(CompactorStatus.NonFinite,
                    $"Layer {shape.Layer}: {nonFiniteScores} scores are not finite, the first {where}, though keys and queries are; their magnitudes overflow float32. Check the cache, or lower AttentionScale."),
                _ => new(CompactorStatus.DeviceFailed, $"Layer {shape.Layer}: a kernel reports {code} {where}, which this version does not know."),
            };
        }
    }
}
