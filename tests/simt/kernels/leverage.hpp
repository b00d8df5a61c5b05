// What the tests of the leverage kernels share: keys, dense or in blocks, rotated or not, and the scores of a float64 loop. Include it after the .cu.
#pragma once
#include "scores.hpp"
#include <cmath>
#include <numeric>

// Keys of a batch whose rows are sequences (dense) or (sequence, head) pairs (paged), with the sketch and everything a kernel's Keys point at.
class LeverageCase
{
public:
#if COMPACTOR_PAGED
    static constexpr i32 BlockSize = COMPACTOR_BLOCK_SIZE;
#else
    static constexpr i32 BlockSize = 1;
#endif

    // lengths: one a sequence, or one a (sequence, head) where paged. bias: of every other channel, in standard deviations.
    LeverageCase(std::vector<i32> lengths_, i32 kv_heads_, i32 chunk_, i32 skip_first_, i32 skip_last_, bool center_, bool phi_per_head_, double epsilon_, float bias)
        : lengths(lengths_), kv_heads(kv_heads_), chunk(chunk_), skip_first(skip_first_), skip_last(skip_last_), center(center_), phi_per_head(phi_per_head_), epsilon(epsilon_),
          heads(COMPACTOR_PAGED ? 1 : kv_heads_), tokens((i32)c_tokens(lengths_)), rows((i32)lengths_.size()), blocks(count_blocks(lengths_)),
          stored(COMPACTOR_PAGED ? blocks * BlockSize : tokens, heads, D, 21, 1), phi(elements_of_phi()),
          rotations((size_t)(POSITIONS * ROTARY_DIM)), tables((size_t)(rows * blocks)), table_lengths(lengths_), positions((size_t)(blocks * BlockSize)),
          batch(lengths_, chunk_, skip_first_, skip_last_)
    {
        std::mt19937 random(5);
        std::vector<i32> order((size_t)blocks);
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), random);
        size_t next = 0;
        for (i32 row = 0; row < rows; row++)
            for (i32 block = 0; COMPACTOR_PAGED && block * BlockSize < lengths[(size_t)row]; block++) tables[(size_t)(row * blocks + block)] = order[next++];
        for (i32 i = 0; i < blocks * BlockSize; i++) positions[(size_t)i] = (i32)(random() % POSITIONS);
        std::uniform_real_distribution<double> angle(0, 6.283), power(0.5, 2);
        for (i32 row = 0; row < POSITIONS; row++)
            for (i32 pair = 0; pair < ROTARY_DIM / 2; pair++) {
                double a = angle(random), scale = power(random);
                rotations[(size_t)(row * ROTARY_DIM + pair)] = (float)(std::cos(a) / scale);
                rotations[(size_t)(row * ROTARY_DIM + ROTARY_DIM / 2 + pair)] = (float)(std::sin(a) / scale);
            }
        std::vector<float> drift = simt::normal((size_t)D, 8);
        for (i32 row = 0; row < rows; row++)
            for (i32 t = 0; t < lengths[(size_t)row]; t++)
                for (i32 h = 0; h < heads; h++)
                    for (i32 d = 0; d < D; d++) {
                        i32 place = storage(row, t);
                        stored.set(place, h, d, (float)stored.at(place, h, d) + (d % 2 ? bias : 0) + drift[(size_t)d] * (float)t / 200);
                    }
    }

    // Where a token is in `stored`.
    i32 storage(i32 row, i32 token) const
    {
        if (COMPACTOR_PAGED) return tables[(size_t)(row * blocks + token / BlockSize)] * BlockSize + token % BlockSize;
        return batch.cu_seqlens[(size_t)row] + token;
    }

    double key(i32 row, i32 token, i32 head, i32 d) const
    {
        i32 place = storage(row, token), angle = COMPACTOR_PAGED ? positions[(size_t)place] : rotations_of_batch() ? place : token, pairs = ROTARY_DIM / 2;
        double own = stored.at(place, head, d);
        if (COMPACTOR_ROTARY == 0 || d >= ROTARY_DIM) return own;
        i32 pair = COMPACTOR_ROTARY == 1 ? d % pairs : d / 2;
        bool first = COMPACTOR_ROTARY == 1 ? d < pairs : d % 2 == 0;
        double other = stored.at(place, head, COMPACTOR_ROTARY == 1 ? (first ? d + pairs : d - pairs) : d ^ 1);
        double cosine = rotations[(size_t)(angle * ROTARY_DIM + pair)], sine = rotations[(size_t)(angle * ROTARY_DIM + pairs + pair)];
        return cosine * own + (first ? sine : -sine) * other;
    }

    double phi_at(i32 row, i32 head, i32 d, i32 column) const
    {
        size_t sketch = phi_per_head ? (size_t)(row * heads + head) : 0;
        return (double)to_f32(phi[(sketch * (size_t)K + (size_t)column) * (size_t)D + (size_t)d]);
    }

    Keys keys() const
    {
        Keys keys{};
        Tensor tensor = stored.tensor();
        if (COMPACTOR_PAGED) {
            keys.cache = {tensor.address, 0, tensor.token_stride * BlockSize, tensor.token_stride, 0, positions.address()};
            keys.tables = {tables.address(), table_lengths.address(), blocks, rows};
        } else {
            keys.dense = tensor;
        }
        keys.phi = phi.address();
        keys.rotations = rotations.address();
        keys.rotary_dim = ROTARY_DIM;
        keys.kv_heads = kv_heads;
        keys.rotations_of_batch = rotations_of_batch();
        keys.phi_per_head = phi_per_head;
        keys.center = center;
        return keys;
    }

    // Both kinds of rotations come with both kinds of sketches in the tests' cases.
    bool rotations_of_batch() const { return phi_per_head; }

    // o of every scored token, 0 elsewhere, as the kernels write it.
    std::vector<double> scores() const
    {
        std::vector<double> scores((size_t)(tokens * heads), 0.0);
        for (i32 row = 0; row < rows; row++)
            for (i32 token = skip_first; token < lengths[(size_t)row] - skip_last; token += chunk) {
                i32 count = std::min(chunk, lengths[(size_t)row] - skip_last - token);
                for (i32 head = 0; head < heads; head++) score_chunk(row, head, token, count, scores);
                if (lengths[(size_t)row] - token <= chunk) break;
            }
        return scores;
    }

    std::vector<i32> lengths;
    i32 kv_heads, chunk, skip_first, skip_last;
    bool center, phi_per_head;
    double epsilon;
    i32 heads, tokens, rows, blocks;
    HostTensor stored;
    simt::Array<bf16> phi;
    simt::Array<float> rotations;
    simt::Array<i32> tables, table_lengths, positions;
    Batch batch;

private:
    static constexpr i32 POSITIONS = 4096, ROTARY_DIM = D / 2 + (D == 80 ? 4 : 0);

    static i32 count_blocks(const std::vector<i32>& lengths)
    {
        i32 blocks = 1;
        for (i32 length : lengths) blocks += COMPACTOR_PAGED ? (length + BlockSize - 1) / BlockSize : 0;
        return blocks;
    }
    std::vector<bf16> elements_of_phi() const
    {
        size_t count = phi_per_head ? (size_t)(rows * heads) : 1;
        return simt::elements<bf16>(simt::normal(count * (size_t)(K * D), 33, 1 / std::sqrt((float)K)));
    }

    void score_chunk(i32 row, i32 head, i32 token, i32 count, std::vector<double>& scores) const
    {
        size_t n = (size_t)count, k = (size_t)K, dim = (size_t)D;
        std::vector<double> centred(n * dim), x(n * k, 0.0), l(k * k, 0.0);
        for (size_t d = 0; d < dim; d++) {
            double mean = 0;
            for (size_t i = 0; i < n; i++) mean += centred[i * dim + d] = key(row, token + (i32)i, head, (i32)d);
            for (size_t i = 0; center && i < n; i++) centred[i * dim + d] -= mean / count;
        }
        for (size_t d = 0; d < dim; d++)
            for (size_t c = 0; c < k; c++) {
                double p = phi_at(row, head, (i32)d, (i32)c);
                for (size_t i = 0; i < n; i++) x[i * k + c] += centred[i * dim + d] * p;
            }
        std::vector<double> gram(k * k, 0.0);
        double trace = 0;
        for (size_t r = 0; r < k; r++)
            for (size_t c = 0; c <= r; c++)
                for (size_t i = 0; i < n; i++) gram[r * k + c] += x[i * k + r] * x[i * k + c];
        for (size_t r = 0; r < k; r++) trace += gram[r * k + r];
        double ridge = std::max(epsilon, std::ldexp(trace, -20) / K);
        for (i32 attempt = 0; attempt < 6; attempt++, ridge = std::max(10 * ridge, 1e-8)) {
            bool good = true;
            for (size_t r = 0; r < k && good; r++)
                for (size_t c = 0; c <= r && good; c++) {
                    double sum = gram[r * k + c] + (r == c ? ridge : 0);
                    for (size_t p = 0; p < c; p++) sum -= l[r * k + p] * l[c * k + p];
                    if (r == c) good = sum > 0;
                    l[r * k + c] = r == c ? std::sqrt(sum) : sum / l[c * k + c];
                }
            if (good) break;
        }
        for (size_t i = 0; i < n; i++) {
            std::vector<double> y(k);
            double o = 0;
            for (size_t r = 0; r < k; r++) {
                y[r] = x[i * k + r];
                for (size_t c = 0; c < r; c++) y[r] -= l[r * k + c] * y[c];
                y[r] /= l[r * k + r];
                o += y[r] * y[r];
            }
            scores[(size_t)((batch.cu_seqlens[(size_t)row] + token) * heads + head) + i * (size_t)heads] = o;
        }
    }
};
