// The kernel of omp.h.
#include "omp.h"

#include <cfloat>
#include <climits>

#include "element.cuh"

namespace deepl0::cuda {

namespace {

constexpr int kMostThreads = 256, kMostWarps = kMostThreads / 32;
constexpr float kLeastPivot = 100 * FLT_EPSILON;

__device__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kAllLanes, x, d);
    return x;
}

/// The largest |alpha| seen and its column, of equal ones the lowest. NaN wins no comparison.
struct Peak {
    float value;
    int at;

    static __device__ Peak none() { return {-1, INT_MAX}; }
    /// Columns ascend.
    __device__ void see(float alpha, int column) {
        if (fabsf(alpha) > value) {
            value = fabsf(alpha);
            at = column;
        }
    }
    /// Of all lanes: as integers, numbers of no sign ascend, and -1 is below them.
    __device__ Peak of_warp() const {
        const int key = __float_as_int(value), most = __reduce_max_sync(kAllLanes, key);
        return {__int_as_float(most),
                __reduce_min_sync(kAllLanes, key == most ? at : INT_MAX)};
    }
};

/// What the warps of a block tell each other. A barrier must lie between two uses of either.
struct Told {
    Peak peak[kMostWarps];
    float sum[kMostWarps];

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
};

/// The shared memory of a signal whose pursuit has chosen up to m atoms.
struct Chosen {
    float* alpha;    // [ld]; NaN of chosen atoms and of the padding
    float* kept;     // [m - 1, ld]: the v_j, if they are kept
    float* inverse;  // C, rows of 1, 2, .. entries
    float *cross, *w, *factor, *y;  // [m] each
    int* atom;                      // [m]

    __device__ Chosen(float4* memory, int ld, int m, bool keeps_rows)
        : alpha(reinterpret_cast<float*>(memory)),
          kept(alpha + ld),
          inverse(kept + (keeps_rows ? (m - 1) * ld : 0)),
          cross(inverse + m * (m + 1) / 2),
          w(cross + m),
          factor(w + m),
          y(factor + m),
          atom(reinterpret_cast<int*>(y + m)) {}

    __device__ float* row(int i) const { return inverse + i * (i + 1) / 2; }

    /// Entry j of C' u over the first k rows, u [k].
    __device__ float column_sum(int j, int k, const float* u) const {
        float sum = 0;
        for (int i = j; i < k; ++i) sum = fmaf(u[i], row(i)[j], sum);
        return sum;
    }
    /// How many of the first k atoms are below.
    __device__ int below(int k, int index) const {
        int n = 0;
        for (int i = 0; i < k; ++i) n += atom[i] < index;
        return n;
    }
};

/// alpha -= y v of the last of k + 1 atoms; what of it this thread sees to be the largest. A thread
/// owns its columns: alpha and the v_j need no barrier.
template <bool KEEPS_ROWS>
__device__ Peak project(const Chosen& s, const float* gram, int ld, int k, float scale) {
    using Four = Pack<float, 4>;
    const auto four = [](float* at) -> Four& { return *reinterpret_cast<Four*>(at); };
    const auto load = [](const float* at) { return *reinterpret_cast<const Four*>(at); };
    const float* last = gram + s.atom[k] * ld;
    const float y = s.y[k];
    Peak peak = Peak::none();
    for (int c = int(threadIdx.x) * 4; c < ld; c += int(blockDim.x) * 4) {
        Four v = load(last + c);
#pragma unroll 4
        for (int j = 0; j < k; ++j) {
            const Four before = load(KEEPS_ROWS ? s.kept + j * ld + c : gram + s.atom[j] * ld + c);
            const float factor = s.factor[j];
#pragma unroll
            for (int i = 0; i < 4; ++i) v.at[i] = fmaf(-factor, before.at[i], v.at[i]);
        }
        Four alpha = four(s.alpha + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v.at[i] *= scale;
            alpha.at[i] = fmaf(-y, v.at[i], alpha.at[i]);
            peak.see(alpha.at[i], c + i);
        }
        four(s.alpha + c) = alpha;
        if (KEEPS_ROWS) four(s.kept + k * ld + c) = v;
    }
    return peak;
}

}  // namespace

template <bool KEEPS_ROWS>
__global__ void __launch_bounds__(kMostThreads)
    omp_kernel(const float* x, int64_t x_stride, const float* alpha, const float* gram, int n,
               int p, int ld, int m, float tol, float* values, int64_t* indices, int64_t* count,
               float* objective, int64_t objective_stride) {
    extern __shared__ float4 memory[];
    __shared__ Told told;
    const Chosen s(memory, ld, m, KEEPS_ROWS);
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    const int64_t number = blockIdx.x;
    objective += number;

    x += number * x_stride;
    float squared = 0;
    for (int i = thread; i < n; i += threads) squared = fmaf(x[i], x[i], squared);
    squared = told.total(squared);
    const float floor = tol * sqrtf(squared);
    alpha += number * ld;
    Peak peak = Peak::none();
    for (int c = thread; c < ld; c += threads) {
        s.alpha[c] = c < p ? alpha[c] : __int_as_float(kNanF32);
        peak.see(s.alpha[c], c);
    }
    int k = 0;
    float taken = 0;  // ||y||^2
    const auto value = [&] { return 0.5f * fmaxf(squared - taken, 0.0f); };
    if (thread == 0) objective[0] = value();
    for (;;) {
        peak = told.largest(peak);
        if (!(peak.value > floor)) break;
        const float correlation = s.alpha[peak.at];
        const float* g = gram + peak.at * ld;
        for (int j = thread; j < k; j += threads) s.cross[j] = g[s.atom[j]];
        __syncthreads();
        for (int i = thread; i < k; i += threads) {
            const float* row = s.row(i);
            float w = 0;
            for (int j = 0; j <= i; ++j) w = fmaf(row[j], s.cross[j], w);
            s.w[i] = w;
        }
        __syncthreads();
        float squares = 0;  // every warp for itself
        for (int i = lane_id(); i < k; i += 32) squares = fmaf(s.w[i], s.w[i], squares);
        const float pivot = 1 - warp_sum(squares);
        if (!(pivot > kLeastPivot)) break;
        const float root = sqrtf(pivot), scale = 1 / root, y = correlation / root;
        for (int j = thread; j < k; j += threads) {
            const float sum = s.column_sum(j, k, s.w);
            s.factor[j] = KEEPS_ROWS ? s.w[j] : sum;
            s.row(k)[j] = -sum * scale;
        }
        taken = fmaf(y, y, taken);
        if (thread == 0) {
            s.row(k)[k] = scale;
            s.y[k] = y;
            s.atom[k] = peak.at;
            s.alpha[peak.at] = __int_as_float(kNanF32);
            objective[(k + 1) * objective_stride] = value();
        }
        if (++k == m) break;
        __syncthreads();
        peak = project<KEEPS_ROWS>(s, gram, ld, k - 1, scale);
        __syncwarp();  // lanes of no column wait for the others
    }
    __syncthreads();

    // The code by ascending index; `missing` zeros at the lowest indices that are free.
    const int missing = m - k;
    values += number * m;
    indices += number * m;
    for (int j = thread; j < k; j += threads) {
        const int atom = s.atom[j], below = s.below(k, atom);
        const int to = below + min(missing, atom - below);
        values[to] = s.column_sum(j, k, s.y);
        indices[to] = atom;
    }
    for (int i = thread; missing > 0 && i < m; i += threads) {
        const int below = s.below(k, i);
        if (s.below(k, i + 1) > below || i - below >= missing) continue;
        values[i] = 0;
        indices[i] = i;
    }
    if (thread == 0) {
        count[number] = k;
        for (int i = k + 1; i <= m; ++i) objective[i * objective_stride] = value();
    }
}

namespace {

template <bool KEEPS_ROWS>
void launch(const Omp& a) {
    const char* name = "omp_kernel";
    const auto kernel = omp_kernel<KEEPS_ROWS>;
    const size_t shared = omp_shared_bytes(a.ld, a.m, KEEPS_ROWS);
    allow_shared(kernel, shared, sizeof(Told), name);
    const unsigned threads = a.ld <= 1024 ? 128 : kMostThreads;
    kernel<<<grid_size(a.rows, name), threads, shared, a.stream>>>(
        a.x, a.x_stride, a.alpha, a.gram, a.n, a.p, a.ld, a.m, a.tol, a.values, a.indices, a.count,
        a.objective, a.objective_stride);
    launched(name);
}

}  // namespace

size_t omp_shared_bytes(int64_t ld, int64_t m, bool keeps_rows) {
    return 4 * size_t(ld * (keeps_rows ? m : 1) + m * (m + 1) / 2 + 5 * m);
}

bool omp_keeps_rows(int64_t ld, int64_t m, const Device& device) {
    const size_t shared = omp_shared_bytes(ld, m, true) + sizeof(Told) + 1024;  // the system's own
    return 3 * shared <= size_t(device.shared_bytes);
}

void omp(const Omp& a) {
    if (a.rows == 0) return;
    omp_keeps_rows(a.ld, a.m, current_device()) ? launch<true>(a) : launch<false>(a);
}

}  // namespace deepl0::cuda
