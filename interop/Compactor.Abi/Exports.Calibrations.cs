using System.Runtime.InteropServices;
using Compactor.Native.Calibration;
using LibrarySample = Compactor.Native.Calibration.CalibrationSample;

namespace Compactor.Abi;

internal static unsafe partial class Exports
{
    [UnmanagedCallersOnly(EntryPoint = "compactor_calibration_fit")]
    public static Status CalibrationFit(CalibrationSample* samples, int count, double overestimatePenalty, Calibration* calibration) => Boundary.Run(() =>
    {
        Arguments.CheckStruct("calibration", calibration);
        var given = Arguments.ReadAll("samples", samples, count);
        foreach (var sample in given)
            Inputs.Reserved("samples", sample.Reserved);
        var fitted = RetentionCalibration.Fit(Array.ConvertAll(given, s => new LibrarySample(s.Retention, s.ContextNll, s.Quality)), overestimatePenalty);
        Arguments.Fill(calibration, FromCalibration(fitted));
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_calibration_retention")]
    public static Status CalibrationRetention(Calibration* calibration, double quality, double contextNll, double* retention) => Boundary.Run(() =>
    {
        Arguments.CheckResult("retention", retention);
        *retention = ToCalibration(calibration).RetentionFor(quality, contextNll);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_calibration_quality")]
    public static Status CalibrationQuality(Calibration* calibration, double retention, double contextNll, double* quality) => Boundary.Run(() =>
    {
        Arguments.CheckResult("quality", quality);
        *quality = ToCalibration(calibration).Quality(retention, contextNll);
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_calibration_load")]
    public static Status CalibrationLoad(byte* path, Calibration* calibration) => Boundary.Run(() =>
    {
        Arguments.CheckStruct("calibration", calibration);
        Arguments.Fill(calibration, FromCalibration(RetentionCalibration.Load(ToPath(path))));
    });

    [UnmanagedCallersOnly(EntryPoint = "compactor_calibration_save")]
    public static Status CalibrationSave(byte* path, Calibration* calibration) => Boundary.Run(() => ToCalibration(calibration).Save(ToPath(path)));

    private static string ToPath(byte* path) => path is null ? throw AbiException.Argument("path is NULL.")
        : *path == 0 ? throw AbiException.Argument("path is empty.") : Marshal.PtrToStringUTF8((nint)path)!;

    private static RetentionCalibration ToCalibration(Calibration* pointer)
    {
        var c = Arguments.Read("calibration", pointer);
        if (!double.IsFinite(c.Alpha) || !double.IsFinite(c.Beta) || !double.IsFinite(c.Error))
            throw AbiException.Argument($"calibration has alpha {c.Alpha}, beta {c.Beta} and error {c.Error}; they must be finite.");
        return new RetentionCalibration(c.Alpha, c.Beta) { Samples = Inputs.Index("calibration.samples", c.Samples), Error = c.Error };
    }

    private static Calibration FromCalibration(RetentionCalibration c) =>
        new() { Samples = c.Samples, Alpha = c.Alpha, Beta = c.Beta, Error = c.Error };
}
