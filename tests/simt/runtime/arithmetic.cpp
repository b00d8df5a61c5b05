#include "arithmetic.hpp"
#include "execution.hpp"
#include "random.hpp"
#include "warp.hpp"
#include <cmath>

namespace simt {

Arithmetic::Arithmetic(u64 s) : seed(s)
{
    Random random{mix(s + 2)};
    for (u32 i = 0; i < 16; i++) order[i] = (u8)i;
    for (u32 i = 0; i < 16; i++) {
        u32 j = i + random.below(16 - i);
        u8 t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    accumulator_last = random.below(2) != 0;
}

const Arithmetic& arithmetic()
{
    static const Arithmetic outside(0);
    return running != nullptr ? running->launch->arithmetic : outside;
}

namespace {

// A number in [-1, 1] that depends on the argument, the function and the seed only.
double jitter(float x, u32 function)
{
    u64 bits = mix(arithmetic().seed ^ (u64)__float_as_uint(x) << 8 ^ function);
    return (double)(i64)bits * 0x1p-63;
}

float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// `exact`, off by at most `relative` of itself.
float approximate(double exact, float x, u32 function, double relative) { return (float)(exact * (1 + jitter(x, function) * relative)); }

typedef double Row __attribute__((vector_size(64)));
typedef i64 Bits __attribute__((vector_size(64)));

// The sum in float32, its lower bits cut off: a double keeps sums of such products exact enough that only the cut rounds.
inline Row cut(Row x) { return (Row)((Bits)x & ~0x1fffffffll); }

// Rows 16 x columns 8 of c += a·b over 16 terms.
void add_products(const double (&a)[16][16], const Row (&b)[16], Row (&c)[16])
{
    const Arithmetic& how = arithmetic();
    for (u32 first = 0; first < 16; first += 4) {
        Row sum[4];
        for (u32 r = 0; r < 4; r++) sum[r] = how.accumulator_last ? Row{} : c[first + r];
        for (u32 i = 0; i < 16; i++) {
            u32 k = how.order[i];
            for (u32 r = 0; r < 4; r++) sum[r] = cut(sum[r] + a[first + r][k] * b[k]);
        }
        for (u32 r = 0; r < 4; r++) c[first + r] = how.accumulator_last ? cut(sum[r] + c[first + r]) : sum[r];
    }
}

// A lane's registers of the first operand, and its accumulators, in the matrices of its warp.
void place_operand(double (&a)[16][16], u32 lane, u32x4 registers, double (*to_float)(u16))
{
    u32 row = lane / 4, pair = lane % 4 * 2;
    const u32 as[4] = {registers.x, registers.y, registers.z, registers.w};
    for (u32 i = 0; i < 4; i++)
        for (u32 half = 0; half < 2; half++) a[row + 8 * (i & 1)][pair + 8 * (i >> 1) + half] = to_float((u16)(as[i] >> 16 * half));
}

void place_accumulators(Row (&c)[16], u32 lane, f32x4 registers)
{
    u32 row = lane / 4, pair = lane % 4 * 2;
    c[row][pair] = registers.x;
    c[row][pair + 1] = registers.y;
    c[row + 8][pair] = registers.z;
    c[row + 8][pair + 1] = registers.w;
}

f32x4 take_accumulators(const Row (&c)[16], u32 lane)
{
    u32 row = lane / 4, pair = lane % 4 * 2;
    return {(float)c[row][pair], (float)c[row][pair + 1], (float)c[row + 8][pair], (float)c[row + 8][pair + 1]};
}

double from_bf16(u16 x) { return (double)__uint_as_float((u32)x << 16); }
double from_f16(u16 x) { return (double)simt_f16_to_f32(x); }

struct Mma
{
    f32x4 c;
    u32x4 a;
    u32x2 b;
};

void multiply(Warp& warp, double (*to_float)(u16))
{
    double a[16][16];      // [row][k]
    Row b[16], c[16];      // [k][column], [row][column]
    for (u32 lane = 0; lane < 32; lane++) {
        const Mma& mma = *(const Mma*)warp.threads[lane]->operand;
        u32 column = lane / 4, pair = lane % 4 * 2;
        const u32 bs[2] = {mma.b.x, mma.b.y};
        place_operand(a, lane, mma.a, to_float);
        place_accumulators(c, lane, mma.c);
        for (u32 i = 0; i < 2; i++)
            for (u32 half = 0; half < 2; half++) b[pair + 8 * i + half][column] = to_float((u16)(bs[i] >> 16 * half));
    }
    add_products(a, b, c);
    for (u32 lane = 0; lane < 32; lane++) {
        Mma& mma = *(Mma*)warp.threads[lane]->operand;
        mma.c = take_accumulators(c, lane);
    }
}

}

void multiply_columns(bool f16, u32 tiles, const u32x4 (&a_registers)[32], const u16* b_rows, f32x4* const (&registers)[32])
{
    double (*to_float)(u16) = f16 ? from_f16 : from_bf16;
    double a[16][16];
    for (u32 lane = 0; lane < 32; lane++) place_operand(a, lane, a_registers[lane], to_float);
    for (u32 n = 0; n < tiles; n++) {
        Row b[16], c[16];
        for (u32 column = 0; column < 8; column++)
            for (u32 k = 0; k < 16; k++) b[k][column] = to_float(b_rows[(n * 8 + column) * 16 + k]);
        for (u32 lane = 0; lane < 32; lane++) place_accumulators(c, lane, registers[lane][n]);
        add_products(a, b, c);
        for (u32 lane = 0; lane < 32; lane++) registers[lane][n] = take_accumulators(c, lane);
    }
}

}

using namespace simt;

extern "C" {

float simt_f16_to_f32(u16 bits)
{
    u32 sign = (u32)(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    // 2^112 moves the exponent's bias; subnormals come out right too.
    return std::copysign(__uint_as_float(magnitude << 13) * 0x1p112f, __uint_as_float(sign | 0x3f800000));
}

u32 simt_pack_bf16(float low, float high)
{
    u32 packed = 0;
    for (float x : {high, low}) {
        u32 bits = __float_as_uint(x);
        u32 half = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        packed = packed << 16 | half;
    }
    return packed;
}

u32 simt_pack_f16(float low, float high)
{
    u32 packed = 0;
    for (float x : {high, low}) {
        u32 sign = __float_as_uint(x) >> 16 & 0x8000, half;
        float magnitude = std::fabs(x);
        if (x != x) half = 0x7fff;
        else if (magnitude >= 65520.0f) half = sign | 0x7c00;
        else if (magnitude < 0x1p-14f) half = sign | (u32)std::nearbyint((double)magnitude * 0x1p24);   // subnormal: units of 2^-24
        else {
            u32 bits = __float_as_uint(magnitude) - (112u << 23);
            half = sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13;
        }
        packed = packed << 16 | half;
    }
    return packed;
}

float simt_exp2_approx(float x) { return flush(approximate(std::exp2((double)flush(x)), x, 1, 0x1p-22)); }

float simt_log2_approx(float x)
{
    x = flush(x);
    double exact = std::log2((double)x);
    // The documented error is absolute, 2^-22, between 0.5 and 2, and relative elsewhere.
    if (x > 0.5f && x < 2.0f) return flush((float)(exact + jitter(x, 2) * 0x1p-22));
    return flush(approximate(exact, x, 2, 0x1p-22));
}

float simt_reciprocal_approx(float x)
{
    x = flush(x);
    return flush(approximate(1 / (double)x, x, 3, 0x1p-23));
}

float simt_tanh_approx(float x) { return approximate(std::tanh((double)x), x, 4, 0x1p-11); }

float simt_rsqrt(float x) { return approximate(1 / std::sqrt((double)x), x, 5, 0x1p-22); }

f32x4 simt_mma_bf16(f32x4 c, u32x4 a, u32x2 b)
{
    SIMT_ENTER(self);
    Mma mine{c, a, b};
    if (meet(self, Wait::mma_bf16, 0xffffffffu, &mine)) multiply(*self.warp, from_bf16);
    return mine.c;
}

f32x4 simt_mma_f16(f32x4 c, u32x4 a, u32x2 b)
{
    SIMT_ENTER(self);
    Mma mine{c, a, b};
    if (meet(self, Wait::mma_f16, 0xffffffffu, &mine)) multiply(*self.warp, from_f16);
    return mine.c;
}

}
