// sums[c] = sum over r of rows[r, c]: bf16 [rows, 64], float32 sums. The emulator's example and first check: an asynchronous copy ring, a barrier, a shuffle.
// Launch: grid (ceil(columns / 64)), 128 threads, shared bytes 2 * 16 * 64 * 2.
#include "ptx.cuh"

constexpr i32 THREADS = 128, COLUMNS = 64, TILE = 16;
constexpr u32 TILE_BYTES = TILE * COLUMNS * 2;

struct ColumnSumsParams
{
    u64 rows, sums;
    i32 count, stride;
};

__device__ __forceinline__ void load_tile(const ColumnSumsParams& p, i32 tile, u32 to)
{
    i32 row = tile * TILE + (i32)threadIdx.x / 8, column = (i32)threadIdx.x % 8 * 8;
    u32 bytes = row < p.count ? 16 : 0;
    const u8* from = (const u8*)p.rows + ((i64)(row < p.count ? row : 0) * p.stride + (i32)blockIdx.x * COLUMNS + column) * 2;
    cp_async_16(to + (u32)((i32)threadIdx.x / 8 * COLUMNS + column) * 2, from, bytes);
    cp_async_commit();
}

extern "C" __global__ void __launch_bounds__(THREADS) column_sums(const __grid_constant__ ColumnSumsParams p)
{
    i32 tiles = ceil_div(p.count, TILE);
    float sum = 0;
    if (tiles > 0) load_tile(p, 0, shared_base());
    for (i32 tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            load_tile(p, tile + 1, shared_base() + (u32)((tile + 1) & 1) * TILE_BYTES);
            cp_async_wait<1>();
        } else cp_async_wait<0>();
        __syncthreads();
        // Two threads a column, each half of the tile's rows.
        u32 at = shared_base() + (u32)(tile & 1) * TILE_BYTES + threadIdx.x / 2 * 2;
        for (i32 r = (i32)(threadIdx.x & 1); r < TILE; r += 2) sum += to_f32(bf16{load_shared_u16(at + (u32)r * COLUMNS * 2)});
        __syncthreads();
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    if ((threadIdx.x & 1) == 0) ((float*)p.sums)[blockIdx.x * COLUMNS + threadIdx.x / 2] = sum;
}
