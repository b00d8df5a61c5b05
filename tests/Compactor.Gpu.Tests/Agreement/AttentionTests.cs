using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Paging;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.Agreement;

/// <summary>Attention over paged heads on the emulator beside float64: several new tokens a sequence; sinks and windows, for one token too.</summary>
public class AttentionTests
{
    /// <summary>mma truncates each of its sums, and weights keep 16 bits.</summary>
    private const double Tolerance = 2e-5;

    public static TheoryData<ElementType, int, int> Cases => new()
    {
        { ElementType.BFloat16, 128, 4 },
        { ElementType.Float16, 64, 1 },
        { ElementType.Float32, 80, 3 },
    };

    public static TheoryData<ElementType, int, int> MoreCases =>
        [.. from type in Arrays.FloatTypes from dim in (int[])[64, 80, 96, 128, 256] from @group in (int[])[1, 7, 16] select (type, dim, @group)];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Extend_attention_agrees(ElementType type, int dim, int group) => CheckExtend(type, dim, group, 16);

    [Theory]
    [MemberData(nameof(Cases))]
    public void Decode_attention_knows_sinks_and_windows(ElementType type, int dim, int group) => CheckDecode(type, dim, group, 16);

    [Theory(Explicit = true)]
    [MemberData(nameof(MoreCases))]
    public void Attention_agrees_everywhere(ElementType type, int dim, int group)
    {
        foreach (int blockSize in (int[])[16, 128, 256])
        {
            CheckExtend(type, dim, group, blockSize);
            CheckDecode(type, dim, group, blockSize);
        }
    }

    [Fact]
    public void What_kernels_do_not_take_is_refused_by_name()
    {
        using var device = new Device();
        Refused("no kernels for head dimension 48", new PagedBatch(1, ElementType.Float32, 48, 1, 1, 16, [2], [20]));
        Assert.Contains("17 query heads share", Assert.Throws<CompactorException>(() => new ExtendPlan([0, 2], 17, 1)).Message);

        void Refused(string part, PagedBatch batch) => Assert.Contains(part, Assert.Throws<CompactorException>(() => batch.Attend(device.Backend, new AttentionOptions())).Message);
    }

    /// <summary>Short turns, whose keys are split, beside a long one, whose are not; no new tokens; heads that hold nothing before them.</summary>
    private static void CheckExtend(ElementType type, int dim, int group, int blockSize)
    {
        int many = 64 / group + 3;
        var batch = new PagedBatch(dim + group, type, dim, kvHeads: 2, group, blockSize, tokens: [2, 0, many], lengths: [530, 2, 0, 40, many, many + 37]);
        foreach (var (options, sinks, window) in ((AttentionOptions, bool, int)[])[(new(), false, 0), (new() { Scale = 0.7, SoftCap = 3 }, true, 25)])
        {
            using var device = new Device();
            batch.AssertReference(batch.Attend(device.Backend, options, sinks, window), options, sinks, window, Tolerance);
        }
    }

    private static void CheckDecode(ElementType type, int dim, int group, int blockSize)
    {
        var batch = new PagedBatch(dim + group, type, dim, kvHeads: 2, group, blockSize, tokens: [1, 1], lengths: [600, 1, 37, 90]);
        foreach (var (sinks, window) in ((bool, int)[])[(true, 0), (true, 50)])
        {
            using var device = new Device();
            var decoded = batch.Attend(device.Backend, new AttentionOptions(), sinks, window, extend: false);
            batch.AssertReference(decoded, new AttentionOptions(), sinks, window, Tolerance);
            Assert.InRange(Arrays.RelativeError(batch.Attend(device.Backend, new AttentionOptions(), sinks, window).Output, decoded.Output), 0, Tolerance);
        }
    }
}
