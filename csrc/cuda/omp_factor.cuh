// What the kernels of omp.h share: the largest correlation of a block's signal, the inverse of the
// Cholesky factor of its atoms, the code that comes out.
#pragma once

#include <cfloat>
#include <climits>

#include "element.cuh"
#include "omp.h"

namespace deepl0::cuda {

constexpr int kOmpThreads = 256, kOmpWarps = kOmpThreads / 32;  // at most
constexpr float kLeastPivot = 100 * FLT_EPSILON;
constexpr int kOmpArrays = 4;  // of m entries of four bytes in a Factor

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kAllLanes, x, d);
    return x;
}

/// The largest of the sizes > 0 that were seen and where, of equal ones the lowest place. NaN wins
/// no comparison.
struct Peak {
    float size;
    int at;

    static __device__ Peak none() { return {0, INT_MAX}; }
    /// Places ascend.
    __device__ void see(float other, int place) {
        if (other > size) {
            size = other;
            at = place;
        }
    }
    /// Of all lanes: as integers, numbers >= 0 ascend.
    __device__ Peak of_warp() const {
        const int key = __float_as_int(size), most = __reduce_max_sync(kAllLanes, key);
        return {__int_as_float(most), __reduce_min_sync(kAllLanes, key == most ? at : INT_MAX)};
    }
};

/// What the warps of a block tell each other. A barrier must lie between two uses of either.
struct Told {
    Peak peak[kOmpWarps];
    float sum[kOmpWarps];

    /// Of all threads, to all. Holds a barrier.
    __device__ Peak largest(Peak mine) {
        const Peak warps = mine.of_warp();
        if (lane_id() == 0) peak[warp_id()] = warps;
        __syncthreads();
        return (lane_id() < int(blockDim.x) / 32 ? peak[lane_id()] : Peak::none()).of_warp();
    }
    __device__ float total(float mine) {
        const float warps = warp_sum(mine);
        if (lane_id() == 0) sum[warp_id()] = warps;
        __syncthreads();
        return warp_sum(lane_id() < int(blockDim.x) / 32 ? sum[lane_id()] : 0.0f);
    }
    /// x'x of x [n].
    __device__ float squares(const float* x, int n) {
        float sum = 0;
        for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) sum = fmaf(x[i], x[i], sum);
        return total(sum);
    }
};

/// C = L^-1 for the Gram matrix L L' of k atoms, and y, C times their correlations with the signal;
/// in shared memory, for up to m atoms.
struct Factor {
    float* inverse;        // rows of 1, 2, .. entries
    float *cross, *w, *y;  // [m] each
    int* atom;             // [m]

    __device__ Factor(float* memory, int m)
        : inverse(memory),
          cross(inverse + m * (m + 1) / 2),
          w(cross + m),
          y(w + m),
          atom(reinterpret_cast<int*>(y + m)) {}

    __device__ int* end(int m) const { return atom + m; }
    __device__ float* row(int i) const { return inverse + i * (i + 1) / 2; }

    /// Entry j of C' u, u [k].
    __device__ float column_sum(int j, int k, const float* u) const {
        float sum = 0;
        for (int i = j; i < k; ++i) sum = fmaf(u[i], row(i)[j], sum);
        return sum;
    }

    /// w of another atom, whose row of D'D is g: returns its squared distance from the span of the
    /// k atoms. All threads; begins with a barrier behind what was written, holds one more.
    __device__ float distance(const float* g, int k) const {
        const int thread = int(threadIdx.x), threads = int(blockDim.x);
        for (int j = thread; j < k; j += threads) cross[j] = g[atom[j]];
        __syncthreads();
        for (int i = thread; i < k; i += threads) {
            const float* c = row(i);
            float sum = 0;
            for (int j = 0; j <= i; ++j) sum = fmaf(c[j], cross[j], sum);
            w[i] = sum;
        }
        __syncthreads();
        return 1 - dot(w, w, k);
    }
    /// Every warp for itself.
    static __device__ float dot(const float* a, const float* b, int k) {
        float sum = 0;
        for (int i = lane_id(); i < k; i += 32) sum = fmaf(a[i], b[i], sum);
        return warp_sum(sum);
    }

    /// Takes the atom whose w that was, its distance root and its entry of y; cross becomes C'w. A
    /// barrier must follow.
    __device__ void append(int k, int which, float root, float entry) const {
        const float scale = 1 / root;
        for (int j = int(threadIdx.x); j < k; j += int(blockDim.x)) {
            cross[j] = column_sum(j, k, w);
            row(k)[j] = -cross[j] * scale;
        }
        if (threadIdx.x == 0) {
            row(k)[k] = scale;
            y[k] = entry;
            atom[k] = which;
        }
    }

    /// How many of the k atoms are below.
    __device__ int below(int k, int index) const {
        int n = 0;
        for (int i = 0; i < k; ++i) n += atom[i] < index;
        return n;
    }
    /// The code C'y of the k atoms by ascending index, and zeros at the lowest indices that are
    /// free where there are fewer than m. Begins after a barrier.
    __device__ void write(int k, int m, float* values, int64_t* indices) const {
        const int thread = int(threadIdx.x), threads = int(blockDim.x), missing = m - k;
        for (int j = thread; j < k; j += threads) {
            const int before = below(k, atom[j]), to = before + min(missing, atom[j] - before);
            values[to] = column_sum(j, k, y);
            indices[to] = atom[j];
        }
        for (int i = thread; missing > 0 && i < m; i += threads) {
            const int before = below(k, i);
            if (below(k, i + 1) > before || i - before >= missing) continue;
            values[i] = 0;
            indices[i] = i;
        }
    }
};

/// 1/2 ||residual||^2 where y takes that much of ||x||^2.
__device__ inline float omp_value(float squared, float taken) {
    return 0.5f * fmaxf(squared - taken, 0.0f);
}

inline unsigned omp_threads(int ld) { return ld <= 1024 ? 128 : kOmpThreads; }

}  // namespace deepl0::cuda
