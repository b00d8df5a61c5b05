using System.Collections;
using System.Reflection;
using System.Runtime.InteropServices;
using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>What calls are given, and what messages make of it; through the exported functions.</summary>
public sealed unsafe class ArgumentTests
{
    private const int Tokens = 100, Dim = 32;

    private static string LastError => Marshal.PtrToStringUTF8((nint)((delegate* unmanaged<byte*>)&Exports.LastError)())!;

    [Theory]
    [InlineData(100L, 0L, "rotary.position_count is 100 and rotary.positions is NULL")]
    [InlineData(0L, 100L, "rotary.table_rows is 100 and rotary.cos and rotary.sin are NULL")]
    public void A_count_without_its_array_is_refused_by_name(long positions, long rows, string message)
    {
        var rotary = new Rotary { StructSize = (uint)sizeof(Rotary), RotaryDim = Dim, Theta = 10000, PositionCount = positions, TableRows = rows };
        Assert.Equal(Status.InvalidArgument, Leverage(&rotary));
        Assert.Contains(message, LastError);
    }

    [Fact]
    public void A_weight_that_would_overflow_is_refused_by_its_own_name()
    {
        var options = Preset();
        options.LeverageWeight = 1e308;
        Assert.Equal(Status.InvalidArgument, Plan(options, out _));
        Assert.Equal("options.leverage_weight is 1E+308; use a number from 0 to 1E+30.", LastError);
    }

    [Fact]
    public void Every_option_has_the_name_of_its_field()
    {
        var own = typeof(CompressionOptions).GetProperties(BindingFlags.Public | BindingFlags.Instance).Select(p => p.Name).Where(name => name != nameof(CompressionOptions.Seed));
        Assert.Equal(own.Order(), FieldNames.Anywhere.Keys.Order());
        Assert.All(FieldNames.Anywhere.Values, name => Assert.Contains(name["options.".Length..], Header.Structs["compactor_options"]));
        Assert.All(FieldNames.First.Values, name => Assert.Contains(Header.Structs.Values, fields => fields.Contains(name[(name.IndexOf('.') + 1)..])));
        Assert.Equal("options.blocks is 3; /x/Epsilon, options.epsilon.", FieldNames.In("Blocks is 3; /x/Epsilon, Epsilon."));
        Assert.Equal("Layer 3: Blocks is", FieldNames.In("Layer 3: Blocks is"));
    }

    [Fact]
    public void Enumerations_are_refused_by_their_field()
    {
        var options = Preset();
        options.SketchSharing = 7;
        Assert.Equal(Status.InvalidArgument, Plan(options, out _));
        Assert.StartsWith("options.sketch_sharing is 7", LastError, StringComparison.Ordinal);
        options = Preset();
        options.LeverageChunk = 3;
        Assert.Equal(Status.InvalidArgument, Plan(options, out _));
        Assert.StartsWith("options.leverage_chunk is 3; use 64 to 4096", LastError, StringComparison.Ordinal);
    }

    /// <summary>Of ABI version 1's first header. These never change: programs were compiled with them.</summary>
    private static readonly (string Struct, int Size)[] s_firstSizes =
    [
        ("BackendInfo", 128), ("BackendOptions", 40), ("Budget", 16), ("CacheInfo", 48), ("CacheOptions", 32), ("Calibration", 32), ("CalibrationSample", 32), ("DecodeOptions", 24),
        ("Layer", 72), ("Options", 120), ("PagedView", 72), ("PlanInfo", 48), ("Rotary", 72), ("Shape", 48), ("TablesInfo", 96), ("Tensor", 64),
    ];

    [Fact]
    public void Structs_are_as_large_as_when_they_were_first_published_or_as_they_were_meant_to_grow()
    {
        var structs = typeof(Exports).Assembly.GetTypes().Where(type => typeof(IGrowing).IsAssignableFrom(type) && type.IsValueType).ToList();
        Assert.Equal(s_firstSizes, structs.OrderBy(type => type.Name, StringComparer.Ordinal).Select(type => (type.Name, (int)type.GetProperty(nameof(IGrowing.FirstSize))!.GetValue(null)!)));
        (string, int)[] grown = [.. structs.Where(type => Marshal.SizeOf(type) != s_firstSizes.Single(first => first.Struct == type.Name).Size).Select(type => (type.Name, Marshal.SizeOf(type)))];
        Assert.Equal([("BackendInfo", 128 + 48)], grown);
    }

    [Fact]
    public void A_backend_describes_itself_to_a_program_of_the_first_header()
    {
        byte* memory = stackalloc byte[sizeof(BackendInfo)];
        new Span<byte>(memory, sizeof(BackendInfo)).Fill(0xCD);
        var info = (BackendInfo*)memory;
        info->StructSize = 128;
        var options = new BackendOptions { StructSize = (uint)sizeof(BackendOptions), Kind = Backend.Cpu };
        ulong backend;
        Assert.Equal(Status.Ok, ((delegate* unmanaged<BackendOptions*, ulong*, Status>)&Exports.BackendOpen)(&options, &backend));
        Assert.Equal(Status.Ok, ((delegate* unmanaged<ulong, BackendInfo*, Status>)&Exports.BackendDescribe)(backend, info));
        Assert.Equal(Status.Ok, ((delegate* unmanaged<ulong, Status>)&Exports.BackendClose)(backend));
        Assert.StartsWith("CPU, ", Marshal.PtrToStringUTF8((nint)info->Description), StringComparison.Ordinal);
        Assert.All(new Span<byte>(memory + 128, sizeof(BackendInfo) - 128).ToArray(), value => Assert.Equal(0xCD, value));
    }

    [Fact]
    public void A_struct_of_a_later_header_is_taken_while_its_new_fields_are_0()
    {
        byte* memory = stackalloc byte[sizeof(Options) + 16];
        new Span<byte>(memory, sizeof(Options) + 16).Clear();
        var options = (Options*)memory;
        *options = Preset();
        options->StructSize = (uint)sizeof(Options) + 16;
        Assert.Equal(Status.Ok, Plan(options, out ulong plan));
        Assert.Equal(Status.Ok, ((delegate* unmanaged<ulong, Status>)&Exports.PlanDestroy)(plan));
        memory[sizeof(Options) + 9] = 1;
        Assert.Equal(Status.Unsupported, Plan(options, out _));
        Assert.Contains($"options.struct_size is {sizeof(Options) + 16}, of which this library (ABI version 1) knows {sizeof(Options)}, and byte {sizeof(Options) + 9} is not 0", LastError);

        // one that is filled: the size stays its owner's, fields that are not known are 0
        Assert.Equal(Status.Ok, ((delegate* unmanaged<int, Options*, Status>)&Exports.OptionsPreset)(0, options));
        Assert.Equal((uint)sizeof(Options) + 16, options->StructSize);
        Assert.Equal(48, options->SketchDimension);
        Assert.Equal(0, memory[sizeof(Options) + 9]);
    }

    [Theory]
    [InlineData(-8)]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(1 << 20)]
    public void Other_sizes_are_refused(int more)
    {
        var options = Preset();
        options.StructSize = (uint)(sizeof(Options) + more);
        Assert.Equal(Status.InvalidArgument, Plan(options, out _));
        Assert.Contains($"options.struct_size is {sizeof(Options) + more}", LastError);
    }

    [Fact]
    public void A_struct_of_an_earlier_header_has_zeros_for_what_it_lacks_and_is_filled_as_far_as_it_goes()
    {
        var memory = stackalloc int[] { 8, 5, 77, 78 };
        var read = Arguments.Read("grown", (Grown*)memory);
        Assert.Equal((5, 0, 0), (read.Old, read.New, read.Newer));
        Arguments.Fill((Grown*)memory, new Grown { Old = 6, New = 7, Newer = 8 });
        Assert.Equal([8, 6, 77, 78], new ReadOnlySpan<int>(memory, 4).ToArray());
        memory[0] = 12;
        Assert.Equal((6, 77, 0), (Arguments.Read("grown", (Grown*)memory).Old, Arguments.Read("grown", (Grown*)memory).New, Arguments.Read("grown", (Grown*)memory).Newer));

        // an array's elements lie as far apart as its owner's struct is large
        var array = stackalloc int[] { 8, 1, 8, 2, 12, 3 };
        Assert.Equal([1, 2], Arguments.ReadAll("grown", (Grown*)array, 2).Select(g => g.Old));
        Assert.Contains("grown[2].struct_size is 12 and grown[0].struct_size is 8", Assert.Throws<AbiException>(() => { Read(array); }).Message);

        static void Read(int* array) => Arguments.ReadAll("grown", (Grown*)array, 3);
    }

    [Fact]
    public void A_slot_ends_with_its_last_generation()
    {
        const ulong slots = 0xff_ffff;
        var entries = (IList)Field("Entries");
        int live = Handles.Live;
        ulong first = Handles.Add(HandleKind.Plan, new object());
        int slot = (int)(first >> 32 & slots);
        Handles.Close<object>(first, HandleKind.Plan);
        var generation = entries[slot]!.GetType().GetField("Generation")!;
        generation.SetValue(entries[slot], uint.MaxValue - 1);

        ulong last = Handles.Add(HandleKind.Plan, new object());
        Assert.Equal((slot, uint.MaxValue), ((int)(last >> 32 & slots), (uint)last));
        Assert.Equal(live + 1, Handles.Live);
        Handles.Close<object>(last, HandleKind.Plan);
        Assert.Equal(live, Handles.Live);

        ulong next = Handles.Add(HandleKind.Plan, new object());
        Assert.NotEqual(slot, (int)(next >> 32 & slots));
        Assert.Throws<AbiException>(() => Handles.Close<object>(first, HandleKind.Plan));
        Handles.Close<object>(next, HandleKind.Plan);
        Assert.Equal(live, Handles.Live);
    }

    [Fact]
    public void What_a_full_table_cannot_hold_is_disposed_of()
    {
        const int slots = 1 << 24;
        var entries = (IList)Field("Entries");
        var free = (Stack<int>)Field("FreeSlots");
        int[] freed = [.. free];
        int used = entries.Count;
        var entry = Activator.CreateInstance(typeof(Handles).GetNestedType("Entry", BindingFlags.NonPublic)!);
        free.Clear();
        while (entries.Count < slots)
            entries.Add(entry);
        var made = new Made();
        try
        {
            Assert.Equal(Status.OutOfMemory, Assert.Throws<AbiException>(() => Handles.AddOrDispose(HandleKind.Backend, made, made)).Status);
        }
        finally
        {
            while (entries.Count > used)
                entries.RemoveAt(entries.Count - 1);
            foreach (int slot in freed.Reverse())
                free.Push(slot);
        }
        Assert.True(made.IsDisposed);
    }

    private static object Field(string name) => typeof(Handles).GetField(name, BindingFlags.NonPublic | BindingFlags.Static)!.GetValue(null)!;

    private sealed class Made : IDisposable
    {
        public bool IsDisposed { get; private set; }

        public void Dispose() => IsDisposed = true;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Grown : IGrowing
    {
        public static int FirstSize => 8;

        public uint StructSize;
        public int Old, New, Newer;
    }

    private static Options Preset()
    {
        var options = new Options { StructSize = (uint)sizeof(Options) };
        Assert.Equal(Status.Ok, ((delegate* unmanaged<int, Options*, Status>)&Exports.OptionsPreset)(0, &options));
        return options;
    }

    private static Status Plan(Options options, out ulong plan) => Plan(&options, out plan);

    private static Status Plan(Options* options, out ulong plan)
    {
        int* cuSeqlens = stackalloc int[] { 0, Tokens };
        var shape = new Shape { StructSize = (uint)sizeof(Shape), Sequences = 1, CuSeqlens = cuSeqlens, KvHeads = 1, HeadDim = Dim };
        var budget = new Budget { StructSize = (uint)sizeof(Budget), Amount = 0.5 };
        fixed (ulong* to = &plan)
            return ((delegate* unmanaged<Shape*, Options*, Budget*, int, ulong*, Status>)&Exports.PlanCreate)(&shape, options, &budget, 1, to);
    }

    private static Status Leverage(Rotary* rotary)
    {
        var open = new BackendOptions { StructSize = (uint)sizeof(BackendOptions), Kind = Backend.Cpu, Threads = 1 };
        ulong backend;
        Assert.Equal(Status.Ok, ((delegate* unmanaged<BackendOptions*, ulong*, Status>)&Exports.BackendOpen)(&open, &backend));
        Assert.Equal(Status.Ok, Plan(Preset(), out ulong plan));
        float[] keys = new float[Tokens * Dim], scores = new float[Tokens];
        Status status;
        fixed (float* k = keys, s = scores)
        {
            var tensor = new Tensor { StructSize = (uint)sizeof(Tensor), Data = k, DataBytes = (ulong)keys.Length * sizeof(float), Tokens = Tokens, Heads = 1, Dim = Dim, TokenStride = Dim, HeadStride = Dim };
            status = ((delegate* unmanaged<ulong, ulong, Tensor*, Rotary*, float*, long, float*, long, Status>)&Exports.Leverage)(backend, plan, &tensor, rotary, null, 0, s, Tokens);
        }
        string error = LastError;
        Assert.Equal(Status.Ok, ((delegate* unmanaged<ulong, Status>)&Exports.PlanDestroy)(plan));
        Assert.Equal(Status.Ok, ((delegate* unmanaged<ulong, Status>)&Exports.BackendClose)(backend));
        Assert.Equal(error, LastError);
        return status;
    }
}
