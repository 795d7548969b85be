// What the kernels of screen.h share: the bound, what is kept of approximations, the workspace.
#pragma once

#include "mma.cuh"
#include "screen.h"

namespace deepl0::cuda {

constexpr int kGroup = 16;  // units, of which the two largest approximations are kept

/// The largest two of some distinct keys.
struct Top {
    int first, second;
    __device__ void join(Top b) {
        second = max(min(first, b.first), max(second, b.second));
        first = max(first, b.first);
    }
};

// The bound. With xb, Wb the rounded operands and Euclidean norms, |x.W - xb.Wb| <= |x - xb| |W| +
// |xb| |W - Wb|. Of what is rounded on the way the tensor cores are assumed to form exact products,
// to align four or more of them and the accumulator to the largest, and to cut each, and their sum,
// no higher than 2^-23 of that: with a step of four terms that is 6 cuts, less than 3 n 2^-24 |x|
// |W| in all; other steps have fewer a term. The dot product of 32 lanes has n / 32 + 8 roundings;
// the rest of c is for norms and comparisons. b is where the sums start: c |b| more. Underflow adds
// less than (4 n + 64) 2^-126. Nothing overflows while |x|, |W|, |b| <= 2^60.
constexpr float kLargest = 0x1p60f;
__device__ inline float summation_factor(int n) { return float(4 * n + 128) * 0x1p-24f; }
__device__ inline float underflow_term(int n) { return float(4 * n + 64) * 0x1p-126f; }

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kAllLanes, x, d);
    return x;
}

/// What is kept of an approximation: as an integer in the order of |a|, or of a where POSITIVE, its
/// last four bits replaced by the place in its group. NaN in no order: its bound is infinite.
template <bool POSITIVE>
__device__ int packed(float a, int place) {
    const int bits = __float_as_int(a);
    const int ordered = POSITIVE ? bits ^ ((bits >> 31) & 0x7fffffff) : bits & 0x7fffffff;
    return (ordered & ~(kGroup - 1)) | place;
}
/// At most what was packed; above() is at least that.
template <bool POSITIVE>
__device__ float below(int key) {
    const int ordered = key & ~(kGroup - 1);
    return __int_as_float(POSITIVE ? ordered ^ ((ordered >> 31) & 0x7fffffff) : ordered);
}
template <bool POSITIVE>
__device__ float above(int key) {
    const float v = below<POSITIVE>(key);
    return v + fabsf(v) * 0x1p-18f;
}

inline int64_t rounded_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// Parts of the workspace; W first, so that it stands still while the rows change.
struct Parts {
    int64_t units, depth, padded, blocks;  // units and rows of whole tiles
    uint16_t *w, *x;
    float4* of_units;
    float2* of_rows;
    Top* tops;  // [rows, units / kGroup]
    int* undecided;
    float* u;  // [blocks, p]
    size_t bytes = 0;

    Parts(int64_t rows, int64_t n, int64_t p, void* workspace) {
        units = rounded_up(p, ProductTile::kColumns);
        depth = rounded_up(n, ProductTile::kDepth);
        padded = rounded_up(rows, ProductTile::kRows);
        blocks = std::min<int64_t>(rows, current_device().multiprocessors);
        take(workspace, w, units * depth);
        take(workspace, of_units, units / kGroup);
        take(workspace, x, padded * depth);
        take(workspace, of_rows, rows);
        take(workspace, tops, rows * (units / kGroup));
        take(workspace, undecided, rows + 1);
        take(workspace, u, blocks * p);
    }
    template <class T>
    void take(void* workspace, T*& part, int64_t count) {
        part = workspace ? reinterpret_cast<T*>(static_cast<char*>(workspace) + bytes) : nullptr;
        bytes += size_t(rounded_up(count * int64_t(sizeof(T)), 256));
    }
};

/// Steps 3 and 4.
void select_screened(const ScreenedTopM& a, const Parts& s, cudaStream_t stream);

}  // namespace deepl0::cuda
