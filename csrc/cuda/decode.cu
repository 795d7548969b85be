// The kernels of decode.h: a warp a row and 128 columns, or a warp eight dot products of a row.
#include "decode.h"
#include "element.cuh"

namespace deepl0::cuda {

constexpr int kWarpsPerBlock = 4;
constexpr int kColumns = 128;  // of a warp: four a lane
constexpr int kDots = 8;       // of a warp of row_dots

// The second bound leaves the compiler room: left to itself it spills for a rounder number of
// blocks.
template <class W, class Out>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 8)
    gather_rows_kernel(const float* values, const int64_t* indices, int64_t rows, int m,
                       const typename W::Bits* w, int64_t w_stride, int64_t units, int n, int tiles,
                       const float* base, int64_t base_stride, typename Out::Bits* out) {
    constexpr int V = 4;
    using Bits = typename W::Bits;
    const int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    const int64_t row = job / tiles;
    if (row >= rows) return;
    const int at = int(job % tiles) * kColumns + lane_id() * V;
    const bool aligned = rows_aligned<Bits, V>(w, w_stride);
    float sum[V] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (base) {
        const auto pack = load_pack<V>(base + row * base_stride, at, n,
                                       rows_aligned<float, V>(base, base_stride));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = pack.at[v];
    }
    by_whole(rows_whole<Bits, V>(w, w_stride, n), [&](auto whole) {
        for (int first = 0; first < m; first += 32) {
            const int own = first + lane_id(), count = min(32, m - first);
            const float value = own < m ? values[row * m + own] : 0.0f;
            const int64_t index = own < m ? indices[row * m + own] : 0;
            if (index < 0 || index >= units) __trap();
#pragma unroll 8
            for (int j = 0; j < count; ++j) {
                const float factor = __shfl_sync(kAllLanes, value, j);
                const Bits* from = w + __shfl_sync(kAllLanes, index, j) * w_stride;
                const auto pack = load_pack<V, decltype(whole)::value>(from, at, n, aligned);
#pragma unroll
                for (int v = 0; v < V; ++v) sum[v] = fmaf(factor, W::value(pack.at[v]), sum[v]);
            }
        }
    });
    using OutBits = typename Out::Bits;
    Pack<OutBits, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.at[v] = Out::rounded(sum[v]);
    store_pack<V>(out + row * n, at, n, rows_aligned<OutBits, V>(out, n), pack);
}

/// A warp kDots entries of a row.
template <class W>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    row_dots_kernel(const int64_t* indices, int64_t rows, int m, int tiles,
                    const typename W::Bits* w, int64_t w_stride, int64_t units,
                    const typename W::Bits* x, int64_t x_stride, int n, float* out) {
    constexpr int V = 4;
    using Bits = typename W::Bits;
    const int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    const int64_t row = job / tiles;
    if (row >= rows) return;
    const int own = int(job % tiles) * kDots + lane_id();
    const bool mine = lane_id() < kDots && own < m;
    const int64_t index = mine ? indices[row * m + own] : 0;  // past the end: a dot for nobody
    if (index < 0 || index >= units) __trap();
    const Bits *left[kDots], *right = x + row * x_stride;
#pragma unroll
    for (int j = 0; j < kDots; ++j) left[j] = w + __shfl_sync(kAllLanes, index, j) * w_stride;
    const bool aligned = rows_aligned<Bits, V>(w, w_stride);
    const bool aligned_x = rows_aligned<Bits, V>(x, x_stride);
    float sum[kDots] = {};
    by_whole(rows_whole<Bits, V>(w, w_stride, n), [&](auto whole) {
        for (int at = lane_id() * V; at < n; at += kColumns) {
            const auto b = load_pack<V>(right, at, n, aligned_x);
#pragma unroll
            for (int j = 0; j < kDots; ++j) {
                const auto a = load_pack<V, decltype(whole)::value>(left[j], at, n, aligned);
#pragma unroll
                for (int v = 0; v < V; ++v)
                    sum[j] = fmaf(W::value(a.at[v]), W::value(b.at[v]), sum[j]);
            }
        }
    });
#pragma unroll
    for (int j = 0; j < kDots; ++j) {
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum[j] += __shfl_xor_sync(kAllLanes, sum[j], d);
        if (lane_id() == j && mine) out[row * m + own] = sum[j];
    }
}

void gather_rows(const float* values, const int64_t* indices, int64_t rows, int64_t m, DType dtype,
                 const void* w, int64_t w_stride, int64_t units, int64_t n, const float* base,
                 int64_t base_stride, DType out_dtype, void* out, cudaStream_t stream) {
    if (rows == 0 || n == 0) return;
    const char* name = "gather_rows_kernel";
    const int64_t tiles = ceil_div(n, kColumns);
    const unsigned blocks = grid_size(ceil_div(rows * tiles, kWarpsPerBlock), name);
    const auto run = [&](auto of_w, auto of_out) {
        using W = decltype(of_w);
        using Out = decltype(of_out);
        gather_rows_kernel<W, Out><<<blocks, 32 * kWarpsPerBlock, 0, stream>>>(
            values, indices, rows, int(m), static_cast<const typename W::Bits*>(w), w_stride, units,
            int(n), int(tiles), base, base_stride, static_cast<typename Out::Bits*>(out));
        launched(name);
    };
    const bool wide = out_dtype == DType::f32;
    switch (dtype) {
        case DType::f32:
            return run(F32(), F32());
        case DType::f16:
            return wide ? run(F16(), F32()) : run(F16(), F16());
        case DType::bf16:
            return wide ? run(BF16(), F32()) : run(BF16(), BF16());
    }
}

void row_dots(const int64_t* indices, int64_t rows, int64_t m, DType dtype, const void* w,
              int64_t w_stride, int64_t units, const void* x, int64_t x_stride, int64_t n,
              float* out, cudaStream_t stream) {
    if (rows == 0 || m == 0) return;
    const char* name = "row_dots_kernel";
    const int64_t tiles = ceil_div(m, kDots);
    const unsigned blocks = grid_size(ceil_div(rows * tiles, kWarpsPerBlock), name);
    const auto run = [&](auto of_w) {
        using W = decltype(of_w);
        using Bits = typename W::Bits;
        row_dots_kernel<W><<<blocks, 32 * kWarpsPerBlock, 0, stream>>>(
            indices, rows, int(m), int(tiles), static_cast<const Bits*>(w), w_stride, units,
            static_cast<const Bits*>(x), x_stride, int(n), out);
        launched(name);
    };
    switch (dtype) {
        case DType::f32:
            return run(F32());
        case DType::f16:
            return run(F16());
        case DType::bf16:
            return run(BF16());
    }
}

}  // namespace deepl0::cuda
