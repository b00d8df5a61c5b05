using System.Globalization;
using Compactor.Native.Calibration;
using FsCheck;
using FsCheck.Fluent;
using MathNet.Numerics.LinearAlgebra;
using MathNet.Numerics.Optimization;
using Xunit;
using BigInteger = System.Numerics.BigInteger;

namespace Compactor.Native.Tests.Calibration;

public sealed class CalibrationTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("calibration").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData(0.3, 1e-12)]
    [InlineData(0.3, -1e-7)]
    [InlineData(0.5, -6)]
    [InlineData(0.123, 3.5)]
    [InlineData(0.9, 29)]
    [InlineData(0.999, -40)]
    public void Quality_is_the_series_of_its_definition(double retention, double steepness)
    {
        // expm1(r·b)/expm1(b) by its power series in exact rationals: independent of any floating-point exponential.
        Assert.Equal(Series(retention * steepness) / Series(steepness), QualityCurve.Quality(retention, steepness), 1e-12);

        static double Series(double x)
        {
            if (x == 0)
                return 0;
            BigInteger one = BigInteger.One << 400, scaled = (BigInteger)Math.ScaleB(x, 200) << 200, term = one, sum = 0;
            for (int n = 1; n < 400; n++)
            {
                term = term * scaled / one / n;
                sum += term;
            }
            return Math.Exp(BigInteger.Log(BigInteger.Abs(sum)) - BigInteger.Log(one)) * sum.Sign;
        }
    }

    [Fact]
    public void Quality_rises_from_0_to_1_and_retention_inverts_it()
    {
        var property = Prop.ForAll(
            (from retention in Gen.Choose(0, 1000) from steepness in Gen.OneOf(Gen.Choose(-60_000, 60_000), Gen.Choose(-3, 3)) select (retention / 1000.0, steepness / 1000.0)).ToArbitrary(),
            c =>
            {
                var (retention, steepness) = c;
                double quality = QualityCurve.Quality(retention, steepness);
                Assert.InRange(quality, 0, 1);
                Assert.Equal(0, QualityCurve.Quality(0, steepness));
                Assert.Equal(1, QualityCurve.Quality(1, steepness), 1e-14);
                Assert.True(QualityCurve.Quality(Math.Min(1, retention + 0.01), steepness) >= quality - 1e-14);
                Assert.Equal(quality, QualityCurve.Quality(QualityCurve.RetentionFor(quality, steepness), steepness), 1e-9);
            });
        property.Check(Config.QuickThrowOnFailure.WithMaxTest(2000).WithReplay(1, 3));
    }

    [Theory]
    [InlineData(1, -5, 1)]
    [InlineData(0, -5, 0)]
    [InlineData(0.7, 0, 0.7)]
    [InlineData(0.5, 700, 0.99900978)]
    [InlineData(0.5, -700, 0.00099021)]
    [InlineData(0.5, 1e6, 0.99999931)]
    public void Retention_for_a_quality_at_the_edges(double quality, double steepness, double expected) =>
        Assert.Equal(expected, QualityCurve.RetentionFor(quality, steepness), 1e-8);

    [Fact]
    public void A_fit_finds_the_curve_that_made_the_samples()
    {
        foreach (var (alpha, beta) in ((double, double)[])[(3, -16), (-2, 1), (0.5, -1), (8, -30), (0, 4)])
        {
            var truth = new RetentionCalibration(alpha, beta);
            var samples = from nll in (double[])[1.5, 2, 2.7, 3.1, 4] from r in (double[])[0.05, 0.1, 0.25, 0.5, 0.75] select new CalibrationSample(r, nll, truth.Quality(r, nll));
            var fitted = RetentionCalibration.Fit(samples);
            Assert.Equal(alpha, fitted.Alpha, 1e-4);
            Assert.Equal(beta, fitted.Beta, 1e-3);
            Assert.InRange(fitted.Error, 0, 1e-6);
        }
    }

    [Fact]
    public void A_fit_of_noisy_samples_is_the_minimum_another_optimiser_finds()
    {
        var random = new Random(11);
        var truth = new RetentionCalibration(2, -9);
        CalibrationSample[] samples = [.. Enumerable.Range(0, 300).Select(_ =>
        {
            double nll = 1 + 3 * random.NextDouble(), r = 0.05 + 0.9 * random.NextDouble();
            return new CalibrationSample(r, nll, Math.Clamp(truth.Quality(r, nll) + 0.2 * (random.NextDouble() - 0.5), 0, 1));
        })];
        var fitted = RetentionCalibration.Fit(samples, overestimatePenalty: 4);
        var objective = ObjectiveFunction.Value(p => Loss(p[0], p[1]));
        var simplex = new NelderMeadSimplex(1e-12, 10_000).FindMinimum(objective, Vector<double>.Build.Dense([1.0, -5.0]));
        Assert.InRange(Loss(fitted.Alpha, fitted.Beta), 0, simplex.FunctionInfoAtMinimum.Value * (1 + 1e-6));
        Assert.Equal(simplex.MinimizingPoint[0], fitted.Alpha, 1e-2);
        Assert.Equal(simplex.MinimizingPoint[1], fitted.Beta, 3e-2);
        var symmetric = RetentionCalibration.Fit(samples, overestimatePenalty: 1);
        Assert.True(samples.Count(s => fitted.Quality(s.Retention, s.ContextNll) > s.Quality) < samples.Count(s => symmetric.Quality(s.Retention, s.ContextNll) > s.Quality),
            "penalised overestimates are fewer");

        double Loss(double alpha, double beta) => samples.Sum(s =>
        {
            double b = alpha * s.ContextNll + beta, error = (Math.Exp(s.Retention * b) - 1) / (Math.Exp(b) - 1) - s.Quality;
            return (error > 0 ? 4 : 1) * error * error;
        });
    }

    [Fact]
    public void Degenerate_samples_give_a_finite_calibration()
    {
        var perfect = RetentionCalibration.Fit([new(0.1, 2, 1), new(0.5, 3, 1), new(0.9, 4, 1)]);
        Assert.InRange(perfect.RetentionFor(0.95, 3), 0, 0.1);
        var oneContext = RetentionCalibration.Fit([new(0.25, 2, 0.8), new(0.5, 2, 0.9)]);
        Assert.Equal(0, oneContext.Alpha);
        var hopeless = RetentionCalibration.Fit([new(0.1, 2, 0), new(0.5, 3, 0), new(0.9, 4, 0)]);
        Assert.InRange(hopeless.RetentionFor(0.95, 3), 0.9, 1);
    }

    [Fact]
    public void Answers_give_the_ratio_of_their_likelihoods()
    {
        Assert.Equal(0.5, CalibrationSample.FromAnswers(0.3, 2, 1, 2).Quality);
        Assert.Equal(1, CalibrationSample.FromAnswers(0.3, 2, 1, 0.5).Quality);
        Assert.Equal(1, CalibrationSample.FromAnswers(0.3, 2, 0, 0).Quality);
        Assert.Equal(0, CalibrationSample.FromAnswers(0.3, 2, 0, 1).Quality);
    }

    [Fact]
    public void What_is_saved_is_loaded_in_any_culture()
    {
        var before = CultureInfo.CurrentCulture;
        var saved = new RetentionCalibration(1.25, -7.0 / 3) { Samples = 42, Error = 0.03, Description = "a model", Model = "0123456789abcdef", Method = "compactor lambda=0.3" };
        string path = Path.Combine(_folder, "calibration.json");
        try
        {
            CultureInfo.CurrentCulture = new CultureInfo("") { NumberFormat = { NumberDecimalSeparator = "," } };
            saved.Save(path);
            saved.Save(path);
            Assert.Equal(saved, RetentionCalibration.Load(path));
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
        Assert.Equal([path], Directory.GetFiles(_folder));
    }

    [Fact]
    public void A_link_is_followed_and_what_is_no_file_is_left_alone()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "links take rights there");
        string target = Path.Combine(_folder, "target.json"), link = Path.Combine(_folder, "link.json");
        File.CreateSymbolicLink(link, target);
        new RetentionCalibration(1, 2).Save(link);
        Assert.Equal(new RetentionCalibration(1, 2), RetentionCalibration.Load(target));
        Assert.Equal(target, new FileInfo(link).LinkTarget);
        Directory.CreateDirectory(Path.Combine(_folder, "sub"));
        Assert.Contains("not a regular file", Assert.Throws<CompactorException>(() => new RetentionCalibration(1, 2).Save(Path.Combine(_folder, "sub"))).Message);
    }

    [Fact]
    public void What_a_file_does_not_state_is_null()
    {
        string path = Path.Combine(_folder, "older.json");
        File.WriteAllText(path, "{\"format\":\"compactor-calibration\",\"version\":1,\"alpha\":1,\"beta\":2,\"samples\":3,\"error\":0.5,\"description\":null}");
        Assert.Equal(new RetentionCalibration(1, 2) { Samples = 3, Error = 0.5 }, RetentionCalibration.Load(path));
    }

    [Theory]
    [InlineData("{", "is not a calibration")]
    [InlineData("[]", "compactor-calibration")]
    [InlineData("{\"format\":\"x\"}", "compactor-calibration")]
    [InlineData("{\"format\":\"compactor-calibration\",\"version\":2}", "version is 2")]
    [InlineData("{\"format\":\"compactor-calibration\",\"version\":1,\"alpha\":\"a\"}", "is not a calibration")]
    [InlineData("{\"format\":\"compactor-calibration\",\"version\":1,\"alpha\":1e999,\"beta\":1}", "is not a calibration")]
    public void A_file_that_is_no_calibration_is_refused(string text, string problem)
    {
        string path = Path.Combine(_folder, "bad.json");
        File.WriteAllText(path, text);
        var e = Assert.Throws<CompactorException>(() => RetentionCalibration.Load(path));
        Assert.Equal(CompactorStatus.InvalidFile, e.Status);
        Assert.Contains(problem, e.Message);
    }

    [Fact]
    public void Values_out_of_range_are_named()
    {
        Names("retention is 1.5", () => QualityCurve.Quality(1.5, 1));
        Names("quality is -0.1", () => QualityCurve.RetentionFor(-0.1, 1));
        Names("steepness b is NaN", () => QualityCurve.Quality(0.5, double.NaN));
        Names("quality is NaN", () => RetentionCalibration.Fit([new(0.5, 1, double.NaN), new(0.5, 1, 1)]));
        Names("1 samples", () => RetentionCalibration.Fit([new(0.5, 1, 1), new(1, 1, 1)]));
        Names("penalty of overestimates is 0", () => RetentionCalibration.Fit([new(0.5, 1, 1), new(0.4, 1, 1)], 0));
        Names("after the compressed cache is NaN", () => CalibrationSample.FromAnswers(0.5, 1, 1, double.NaN));

        static void Names(string problem, Func<object> act)
        {
            var e = Assert.Throws<CompactorException>(act);
            Assert.Equal(CompactorStatus.InvalidArgument, e.Status);
            Assert.Contains(problem, e.Message);
        }
    }
}
