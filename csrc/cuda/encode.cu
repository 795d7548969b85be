// The kernels of encode.h.
#include "encode.h"
#include "select.cuh"

namespace deepl0::cuda {

constexpr int kWarpsPerBlock = 4;

/// Blocks a multiprocessor should hold. Left to itself the compiler spills a register or two for a
/// rounder number.
constexpr int blocks_for(int items) { return items <= 8 ? 7 : items == 16 ? 4 : 3; }

/// Entries of z whose rows of S' are in flight together: 8 or 16 packs a lane.
template <int ITEMS>
constexpr int kInFlight = ITEMS <= 4    ? 8
                          : ITEMS <= 16 ? 4
                                        : 2;

constexpr int kStaged = 256;  // entries of z that a block holds at a time

template <class S, int ITEMS, bool POSITIVE>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, blocks_for(ITEMS))
    gather_top_m_warp_kernel(const float* wx, int64_t wx_stride, const float* values,
                             const int64_t* indices, const typename S::Bits* st, int64_t st_stride,
                             int64_t rows, int p, int m, float* out_values, int64_t* out_indices) {
    constexpr int V = 4, kAhead = kInFlight<ITEMS>;
    using Bits = typename S::Bits;
    const int64_t row = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    if (row >= rows) return;
    float u[ITEMS];
    const bool aligned = rows_aligned<float, V>(wx, wx_stride);
#pragma unroll
    for (int k = 0; k < ITEMS; k += V) {
        const auto pack = load_pack<V>(wx + row * wx_stride, entry_of<V>(k), p, aligned);
#pragma unroll
        for (int v = 0; v < V; ++v) u[k + v] = pack.at[v];
    }
    const bool aligned_s = rows_aligned<Bits, V>(st, st_stride);
    by_whole(rows_whole<Bits, V>(st, st_stride, p), [&](auto whole) {
        for (int first = 0; first < m; first += 32) {
            // A lane holds one entry of z, and hands it to all.
            const int own = first + lane_id(), count = min(32, m - first);
            const float z = own < m ? values[row * m + own] : 0.0f;
            const int64_t index = own < m ? indices[row * m + own] : 0;
            if (index < 0 || index >= p) __trap();
#pragma unroll kAhead
            for (int j = 0; j < count; ++j) {
                const float zj = __shfl_sync(kAllLanes, z, j);
                const Bits* atom = st + __shfl_sync(kAllLanes, int(index), j) * st_stride;
#pragma unroll
                for (int k = 0; k < ITEMS; k += V) {
                    const auto pack =
                        load_pack<V, decltype(whole)::value>(atom, entry_of<V>(k), p, aligned_s);
#pragma unroll
                    for (int v = 0; v < V; ++v) u[k + v] = fmaf(zj, S::value(pack.at[v]), u[k + v]);
                }
            }
        }
    });
    int key[ITEMS];
    const KeyOf<uint32_t> key_of{kNanF32};
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        u[i] = __uint_as_float(selectable<POSITIVE>(__float_as_uint(u[i]), kNanF32));
        key[i] = entry_of<V>(i) < p ? key_of(__float_as_uint(u[i])) : kPadding;
    }
    const uint32_t keep = warp_keep<ITEMS, V>(key, warp_cut(key, p, m));
    for_each_ranked<ITEMS, V>(keep, [&](int item, int rank) {
        out_values[row * m + rank] = S::value(S::rounded(u[item]));
        out_indices[row * m + rank] = entry_of<V>(item);
    });
}

template <class S, bool POSITIVE>
__global__ void __launch_bounds__(1024, 1)
    gather_top_m_block_kernel(const float* wx, int64_t wx_stride, const float* values,
                              const int64_t* indices, const typename S::Bits* st, int64_t st_stride,
                              int p, int m, float* out_values, int64_t* out_indices) {
    constexpr int V = 4;
    using Bits = typename S::Bits;
    __shared__ BlockSelect select;
    __shared__ float z[kStaged];
    __shared__ int index[kStaged];
    extern __shared__ uint4 memory[];
    float* u = reinterpret_cast<float*>(memory);
    const int64_t row = blockIdx.x;
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    const bool aligned = rows_aligned<float, V>(wx, wx_stride);
    const bool aligned_s = rows_aligned<Bits, V>(st, st_stride);
    for (int first = 0; first < m; first += kStaged) {
        const int count = min(kStaged, m - first);
        if (first > 0) __syncthreads();
        for (int j = thread; j < count; j += threads) {
            const int64_t i = indices[row * m + first + j];
            if (i < 0 || i >= p) __trap();
            z[j] = values[row * m + first + j];
            index[j] = int(i);
        }
        __syncthreads();
        // A thread owns its columns: what it adds to, nobody else touches before the barrier.
        by_whole(rows_whole<Bits, V>(st, st_stride, p), [&](auto whole) {
            for (int at = thread * V; at < p; at += threads * V) {
                const auto sum = first > 0 ? load_pack<V>(u, at, p, true)
                                           : load_pack<V>(wx + row * wx_stride, at, p, aligned);
                float own[V];
#pragma unroll
                for (int v = 0; v < V; ++v) own[v] = sum.at[v];
#pragma unroll 8
                for (int j = 0; j < count; ++j) {
                    const Bits* atom = st + index[j] * st_stride;
                    const auto pack = load_pack<V, decltype(whole)::value>(atom, at, p, aligned_s);
#pragma unroll
                    for (int v = 0; v < V; ++v) own[v] = fmaf(z[j], S::value(pack.at[v]), own[v]);
                }
                if (POSITIVE && first + count == m) {
#pragma unroll
                    for (int v = 0; v < V; ++v)
                        own[v] = __uint_as_float(positive_part(__float_as_uint(own[v]), kNanF32));
                }
                store_pack<V>(u, at, p, true, Pack<float, V>{{own[0], own[1], own[2], own[3]}});
            }
        });
    }
    __syncthreads();
    const KeyOf<uint32_t> key_of{kNanF32};
    const auto keys = [&](int i, int (&key)[kTogether]) {
        keys_of(reinterpret_cast<const uint32_t*>(u), i, p, true, key_of, key);
    };
    const Cut cut = block_cut<31>(select, keys, p, m);
    block_for_each(select, keys, p, cut, [&](int i, unsigned keep, int rank) {
#pragma unroll 1
        for (; keep != 0; keep &= keep - 1) {
            const int j = i + __ffs(int(keep)) - 1;
            out_values[row * m + rank] = S::value(S::rounded(u[j]));
            out_indices[row * m + rank] = j;
            ++rank;
        }
    });
}

namespace {

template <class S, int ITEMS, bool POSITIVE>
void launch_warp(const GatherStage& a, cudaStream_t stream) {
    const char* name = "gather_top_m_warp_kernel";
    gather_top_m_warp_kernel<S, ITEMS, POSITIVE>
        <<<grid_size(ceil_div(a.rows, kWarpsPerBlock), name), 32 * kWarpsPerBlock, 0, stream>>>(
            a.wx, a.wx_stride, a.values, a.indices, static_cast<const typename S::Bits*>(a.st),
            a.st_stride, a.rows, int(a.p), int(a.m), a.out_values, a.out_indices);
    launched(name);
}

template <class S, bool POSITIVE>
void launch_block(const GatherStage& a, cudaStream_t stream) {
    const char* name = "gather_top_m_block_kernel";
    const auto kernel = gather_top_m_block_kernel<S, POSITIVE>;
    const size_t shared = ceil_div(a.p * 4, 16) * 16;
    allow_shared(kernel, shared, sizeof(BlockSelect) + kStaged * 8, name);
    const int threads = a.p <= 4096 ? 256 : a.p <= 8192 ? 512 : 1024;
    kernel<<<grid_size(a.rows, name), threads, shared, stream>>>(
        a.wx, a.wx_stride, a.values, a.indices, static_cast<const typename S::Bits*>(a.st),
        a.st_stride, int(a.p), int(a.m), a.out_values, a.out_indices);
    launched(name);
}

template <class S, bool POSITIVE>
void run(const GatherStage& a, cudaStream_t stream) {
    if (a.p <= 128) return launch_warp<S, 4, POSITIVE>(a, stream);
    if (a.p <= 256) return launch_warp<S, 8, POSITIVE>(a, stream);
    if (a.p <= 512) return launch_warp<S, 16, POSITIVE>(a, stream);
    if (a.p <= 1024) return launch_warp<S, 32, POSITIVE>(a, stream);
    launch_block<S, POSITIVE>(a, stream);
}

template <class S>
void run(const GatherStage& a, cudaStream_t stream) {
    a.positive ? run<S, true>(a, stream) : run<S, false>(a, stream);
}

}  // namespace

int64_t gather_top_m_most() {
    const int64_t fixed = sizeof(BlockSelect) + kStaged * 8;
    return std::max<int64_t>(1024, (current_device().shared_bytes - fixed) / 16 * 4);
}

void gather_top_m(const GatherStage& a, cudaStream_t stream) {
    if (a.rows == 0 || a.m == 0) return;
    switch (a.dtype) {
        case DType::f32:
            return run<F32>(a, stream);
        case DType::f16:
            return run<F16>(a, stream);
        case DType::bf16:
            return run<BF16>(a, stream);
    }
}

}  // namespace deepl0::cuda
