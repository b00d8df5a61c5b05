// What a kernel's test needs: device arrays, launches over many schedules, comparison with a float64 reference. Include it after the .cu.
//
// checks/column_sums.cpp is the example.
#pragma once
#include "simt_entry.hpp"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {

inline SimtLaunch settings{nullptr, "", nullptr, 1, 1, {}, {}, 0, 0, 64, 1};   // seeds, resident blocks, preemption and race detection of the next launches
inline unsigned failures = 0;

// T elements of device memory, filled with 0xFF bytes (NaN, -1); the host reads and writes it directly between launches.
template <class T> class Array
{
public:
    explicit Array(size_t count) : count_(count), address_(simt_allocate(count * sizeof(T)))
    {
        if (address_ == 0) throw std::runtime_error("no device memory for " + std::to_string(count * sizeof(T)) + " bytes");
    }
    Array(const std::vector<T>& values) : Array(values.size()) { std::memcpy(data(), values.data(), count_ * sizeof(T)); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array()
    {
        char error[256];
        if (simt_free(address_, error, sizeof error) != 0) std::fprintf(stderr, "%s\n", error);
    }
    u64 address() const { return address_; }
    size_t size() const { return count_; }
    T* data() const { return (T*)address_; }
    T& operator[](size_t i) const
    {
        if (i >= count_) throw std::out_of_range("element " + std::to_string(i) + " of an array of " + std::to_string(count_));
        return data()[i];
    }
    std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }
    void fill(int byte) { std::memset((void*)data(), byte, count_ * sizeof(T)); }

private:
    size_t count_;
    u64 address_;
};

struct Extent
{
    unsigned x = 1, y = 1, z = 1;
};

// The message of the fault, or "" when the launch ran through.
inline std::string try_launch(void (*entry)(const void*), const char* name, Extent grid, Extent block, unsigned shared_bytes, const void* params)
{
    SimtLaunch launch = settings;
    launch.entry = entry;
    launch.name = name;
    launch.params = params;
    launch.grid[0] = grid.x, launch.grid[1] = grid.y, launch.grid[2] = grid.z;
    launch.block[0] = block.x, launch.block[1] = block.y, launch.block[2] = block.z;
    launch.shared_bytes = shared_bytes;
    char error[2048];
    return simt_launch(&launch, error, sizeof error) == 0 ? "" : error;
}

inline void require_launch(const std::string& error)
{
    if (!error.empty()) throw std::runtime_error(error);
}

#define TRY_LAUNCH(kernel, grid, block, shared_bytes, params) \
    simt::try_launch(&simt::call<&kernel>, #kernel, simt::Extent grid, simt::Extent block, shared_bytes, &(params))
// Throws std::runtime_error with the emulator's message when the kernel faults.
#define LAUNCH(kernel, grid, block, shared_bytes, params) simt::require_launch(TRY_LAUNCH(kernel, grid, block, shared_bytes, params))

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
            simt::failures++; \
        } \
    } while (0)

// Relative L2 distance of `actual` from `expected`; infinite when a value is not finite.
template <class A> double relative_error(const std::vector<A>& actual, const std::vector<double>& expected)
{
    if (actual.size() != expected.size()) throw std::invalid_argument("compared arrays differ in length");
    double difference = 0, norm = 0;
    for (size_t i = 0; i < actual.size(); i++) {
        double d = (double)actual[i] - expected[i];
        if (!std::isfinite((double)actual[i])) return INFINITY;
        difference += d * d;
        norm += expected[i] * expected[i];
    }
    return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

#define CHECK_CLOSE(actual, expected, tolerance) \
    do { \
        double error_ = simt::relative_error(actual, expected); \
        if (!(error_ <= (tolerance))) { \
            std::fprintf(stderr, "%s:%d: relative error %.3g exceeds %.3g\n", __FILE__, __LINE__, error_, (double)(tolerance)); \
            simt::failures++; \
        } \
    } while (0)

// Runs `body` once a schedule; the number can be raised by SIMT_SCHEDULES.
template <class Body> void over_schedules(unsigned count, Body body)
{
    const char* wanted = std::getenv("SIMT_SCHEDULES");
    if (wanted != nullptr) count = (unsigned)std::atoi(wanted);
    for (unsigned seed = 1; seed <= count; seed++) {
        settings.schedule_seed = seed;
        body();
    }
}

// Values of a standard normal distribution, rounded to bfloat16, so that they are exact in every element type but f16's tails.
inline std::vector<float> normal(size_t count, unsigned seed, float scale = 1)
{
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution(0, scale);
    std::vector<float> values(count);
    for (float& x : values) x = __uint_as_float(simt_pack_bf16(distribution(generator), 0) << 16);
    return values;
}

// The values as the device stores them.
template <class Element> Element element(float x);
template <> inline f32 element<f32>(float x) { return {x}; }
template <> inline bf16 element<bf16>(float x) { return {(u16)simt_pack_bf16(x, 0)}; }
template <> inline f16 element<f16>(float x) { return {(u16)simt_pack_f16(x, 0)}; }
template <class Element> std::vector<Element> elements(const std::vector<float>& values)
{
    std::vector<Element> stored;
    for (float x : values) stored.push_back(element<Element>(x));
    return stored;
}

// What main returns: runs the test, prints the fault that ended it.
template <class Body> int test(Body body)
{
    try {
        body();
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        failures++;
    }
    if (failures != 0) std::fprintf(stderr, "%u failures\n", failures);
    return failures == 0 ? 0 : 1;
}

}
