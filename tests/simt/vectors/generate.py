"""Writes vectors.txt and vectors_sm90a.txt: for each wrapper of cuda/ptx.cuh and cuda/ptx_sm90a.cuh, inputs of 32 lanes (128 threads for sm_90a) and the outputs the PTX manual
promises, from numpy and not from the emulator.

A line is `wrapper inputs outputs bound`, then 32 (128) x inputs and 32 (128) x outputs hexadecimal words, lane by lane. `bound` is `exact`, or what an output, a float32, may be off by:
`relative:B` of itself, `log2` for 2^-22 of itself, absolute where the argument lies between 0.5 and 2.
"""
import numpy as np

random = np.random.default_rng(20240607)
LANES = 32
lines = []


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def record(name, inputs, outputs, bound="exact", threads=LANES):
    inputs, outputs = (np.asarray(a, np.uint32).reshape(threads, -1) for a in (inputs, outputs))
    words = " ".join(f"{w:x}" for a in (inputs, outputs) for w in a.reshape(-1))
    lines.append(f"{name} {inputs.shape[1]} {outputs.shape[1]} {bound} {words}")


def to_bf16(x):
    """Round to nearest even; NaN becomes 0x7fff as the instruction has it."""
    w = bits(x).astype(np.uint64)
    rounded = ((w + 0x7FFF + ((w >> 16) & 1)) >> 16).astype(np.uint32)
    return np.where(np.isnan(np.asarray(x, np.float32)), np.uint32(0x7FFF), rounded)


def to_f16(x):
    with np.errstate(over="ignore"):
        half = np.asarray(x, np.float32).astype(np.float16).view(np.uint16).astype(np.uint32)
    return np.where(np.isnan(np.asarray(x, np.float32)), np.uint32(0x7FFF), half)


# Conversions: every kind of number, ties, the largest and smallest.
f16 = np.array([0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, *random.integers(0, 0x7C00, 20)], np.uint16)
record("to_f32_f16", f16, bits(f16.view(np.float16).astype(np.float32)))
bf16 = np.array([0, 0x8000, 1, 0x80, 0x7F, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, *random.integers(0, 0x7F80, 21)], np.uint32)
record("to_f32_bf16", bf16, bf16 << 16)
edges = np.array([0, -0.0, 1, -1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, -3.4e38, np.inf, -np.inf, 2**-126, 2**-133, 2**-140, 1e-45, np.nan,
                  1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.99, 65520, -65520, 2**-14, 2**-24, 2**-25, 3 * 2**-25, 2**-14 - 2**-25, 6e-8, 1e5, -7e-5, 0.1, 1 / 3], np.float32)
for _ in range(2):
    other = random.permutation(edges)
    record("pack_bf16", np.stack([bits(edges), bits(other)], 1), to_bf16(edges) | to_bf16(other) << 16)
    record("pack_f16", np.stack([bits(edges), bits(other)], 1), to_f16(edges) | to_f16(other) << 16)

# Fragments: lane l holds row l % 8 of matrix l / 8 as 8 elements of 16 bits.
rows = random.integers(0, 2**16, (4, 8, 8), np.uint32)
words = rows[..., 0::2] | rows[..., 1::2] << 16
lane = np.arange(LANES)
for name, matrices in (("ldmatrix_x4", rows), ("ldmatrix_x4_trans", rows.transpose(0, 2, 1))):
    pairs = matrices[..., 0::2] | matrices[..., 1::2] << 16
    record(name, words.reshape(LANES, 4), pairs[:, lane // 4, lane % 4].T)

# Products: whole numbers, so that every order of summation gives the same bits.
for name, convert in (("mma_bf16", to_bf16), ("mma_f16", to_f16)):
    for largest in (1, 15):
        a, b = random.integers(-largest, largest + 1, (16, 16)), random.integers(-largest, largest + 1, (16, 8))
        c = random.integers(-1000, 1001, (16, 8))
        group, pair = lane // 4, lane % 4 * 2

        def packed(low, high):
            return convert(low.astype(np.float32)) | convert(high.astype(np.float32)) << 16

        fragment_a = [packed(a[group + r, pair + k], a[group + r, pair + k + 1]) for r, k in ((0, 0), (8, 0), (0, 8), (8, 8))]
        fragment_b = [packed(b[pair + k, group], b[pair + k + 1, group]) for k in (0, 8)]

        def accumulator(m):
            return [bits(m[group + r, pair + i].astype(np.float32)) for r, i in ((0, 0), (0, 1), (8, 0), (8, 1))]

        record(name, np.stack([*accumulator(c), *fragment_a, *fragment_b], 1), np.stack(accumulator(c + a @ b), 1))

# Approximate functions: the exact value, and how far the manual lets them stray.
x = np.concatenate([[0, -0.0, 1, -1, 127.5, -125.5, -200, 200, np.inf, -np.inf], random.uniform(-30, 30, 22)]).astype(np.float32)
with np.errstate(over="ignore"):
    y = np.exp2(x.astype(np.float64)).astype(np.float32)
record("exp2_approx", bits(x), bits(np.where(np.abs(y) < 2**-126, 0, y)), "relative:2^-22")
x = np.concatenate([[1, 2, 0.5, 4, 2**-126, 3e38, 1.0000001, 0.9999999], random.uniform(0.5, 2, 12), np.exp(random.uniform(-60, 60, 12))]).astype(np.float32)
record("log2_approx", bits(x), bits(np.log2(x.astype(np.float64))), "log2")
x = np.concatenate([[1, -1, 3, np.inf, -np.inf, 2**100, 2**-100, 1e30], random.normal(0, 10, 24)]).astype(np.float32)
record("reciprocal_approx", bits(x), bits(1 / x.astype(np.float64)), "relative:2^-23")
x = np.concatenate([[0, -0.0, 1, -1, 20, -20, np.inf, -np.inf], random.normal(0, 2, 24)]).astype(np.float32)
record("tanh_approx", bits(x), bits(np.tanh(x.astype(np.float64))), "relative:2^-11")

# Memory: what is stored comes back, whole or in pieces; copies fill with zeros; atomics add up.
words = random.integers(0, 2**32, (LANES, 4), np.uint32)
record("shared_x4", words, words)
record("shared_x2", words[:, :2], words[:, :2])
record("shared_f64", words[:, :2] & 0x7FEFFFFF, words[:, :2] & 0x7FEFFFFF)
record("shared_u16", words[:, :1], np.stack([words[:, 0] & 0xFFFF, words[:, 0] >> 16], 1))
record("streaming", words, words)
count = (lane % 17).astype(np.uint32)
record("cp_async_16", np.concatenate([words, count[:, None]], 1), np.where(np.arange(16) < count[:, None], words.view(np.uint8).reshape(LANES, 16), 0).astype(np.uint8).view(np.uint32))
record("atomic_add_shared", words[:, :1], np.full(LANES, words[:, 0].sum(dtype=np.uint32)))
record("atomic_add_global", words[:, :1], np.full(LANES, words[:, 0].sum(dtype=np.uint32)))
record("atomic_add_acq_rel", words[:, :1], np.full(LANES, words[:, 0].sum(dtype=np.uint32)))
largest = words[:, :2].copy().view(np.uint64).max()
record("atomic_max_global", words[:, :2], np.tile(np.array([largest]).view(np.uint32), (LANES, 1)))

with open("vectors.txt", "w") as file:
    file.write("\n".join(lines) + "\n")

# sm_90a, 128 threads. wgmma: 64 x 64 x 32 in two steps, whole numbers; b's 64 rows of 128 bytes, of which each thread holds 64, rotated as the 128-byte swizzle has them: the unit of 16
# bytes that is number u of row r lies at place u ^ (r % 8).
lines = []
thread = np.arange(128)
group, pair, first = thread % 32 // 4, thread % 4 * 2, thread // 32 * 16
for name, convert in (("wgmma_bf16", to_bf16), ("wgmma_f16", to_f16)):
    a, b = random.integers(-15, 16, (64, 32)), random.integers(-15, 16, (64, 32))
    row = np.arange(64)
    units = np.zeros((64, 8, 8), np.uint32)
    for u in range(4):
        units[row, u ^ (row % 8)] = convert(b[:, 8 * u:8 * u + 8].astype(np.float32))
    image = (units[..., 0::2] | units[..., 1::2] << 16).reshape(128, 16)
    fragments = []
    for step in (0, 16):
        for r, k in ((0, 0), (8, 0), (0, 8), (8, 8)):
            low, high = (convert(a[first + group + r, step + pair + k + i].astype(np.float32)) for i in (0, 1))
            fragments.append(low | high << 16)
    c = a @ b.T
    products = [bits(c[first + group + r, 8 * n + pair + i].astype(np.float32)) for n in range(8) for r in (0, 8) for i in (0, 1)]
    record(name, np.concatenate([image, np.stack(fragments, 1)], 1), np.stack(products, 1), threads=128)
words = random.integers(0, 2**32, (128, 4), np.uint32)
record("bulk_copy", words, np.roll(words, -1, 0), threads=128)
record("mbarrier_arrive", words[:, :1], np.roll(words[:, :1], -1, 0), threads=128)

with open("vectors_sm90a.txt", "w") as file:
    file.write("\n".join(lines) + "\n")
