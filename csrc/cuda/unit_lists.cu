// The kernels of unit_lists.h: a stable radix sort, and sums over its lists.
#include "element.cuh"
#include "unit_lists.h"

namespace deepl0::cuda {

constexpr int kDigits = 256;
constexpr int kSortWarps = 8;
constexpr int kSortSteps = 4;  // of 32 entries, by each warp
constexpr int kSortTile = kSortWarps * kSortSteps * 32;
constexpr int kScanEach = 8;  // counts a thread, in one round of the scan

constexpr int kWarpsPerBlock = 4;
constexpr int kColumns = 128;     // of a warp: four a lane
constexpr int kChunk = 128;       // entries of a warp of combine
constexpr int kAhead = 8;         // rows of x it has in flight
constexpr int kOuterTile = 4096;  // columns of a block of outer
constexpr int kOuterWarps = 4;
constexpr int kAtomicUnits = 8;  // entries of a row that one warp of outer_atomic spreads

// The second launch bound of a kernel here gives the compiler room: left to itself it spills a
// register or two for a rounder number of blocks a multiprocessor.

// ----------------------------------------------------------------------------------------- sort

/// Where a pass reads: the indices themselves in the first, in order; then what a pass has written.
struct SortSource {
    const int64_t* indices;  // or null
    const int32_t* unit;
    const int32_t* entry;
    int64_t units;

    __device__ int unit_at(int e) const {
        if (!indices) return unit[e];
        const int64_t i = indices[e];
        if (i < 0 || i >= units) __trap();
        return int(i);
    }
    __device__ int entry_at(int e) const { return indices ? e : entry[e]; }
};

/// The inclusive sum of `own` over the threads of a block of kSortWarps warps, and that of all.
__device__ int block_sums(int own, int& all) {
    __shared__ int of_warp[kSortWarps];
    int inclusive = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(kAllLanes, inclusive, d);
        if (lane_id() >= d) inclusive += other;
    }
    __syncthreads();  // the sums of another call have been read
    if (lane_id() == 31) of_warp[warp_id()] = inclusive;
    __syncthreads();
    const int warp_sum = lane_id() < kSortWarps ? of_warp[lane_id()] : 0;
    all = __reduce_add_sync(kAllLanes, warp_sum);
    return inclusive + __reduce_add_sync(kAllLanes, lane_id() < warp_id() ? warp_sum : 0);
}

/// counts[digit * tiles + tile]: entries of the tile with that digit.
__global__ void __launch_bounds__(32 * kSortWarps)
    sort_count_kernel(const int64_t* indices, const int32_t* unit, int entries, int64_t units,
                      int shift, int* counts) {
    __shared__ int bins[kDigits];
    const SortSource source{indices, unit, nullptr, units};
    const int thread = int(threadIdx.x);
    bins[thread] = 0;
    __syncthreads();
    const int begin = int(blockIdx.x) * kSortTile, size = min(kSortTile, entries - begin);
    for (int i = thread; i < size; i += 32 * kSortWarps)
        atomicAdd(&bins[(source.unit_at(begin + i) >> shift) & (kDigits - 1)], 1);
    __syncthreads();
    counts[int64_t(thread) * gridDim.x + blockIdx.x] = bins[thread];
}

/// A block a digit: exclusive sums of its counts in place, and their total.
__global__ void __launch_bounds__(32 * kSortWarps)
    sort_scan_kernel(int* counts, int tiles, int* totals) {
    int* own_counts = counts + int64_t(blockIdx.x) * tiles;
    int carry = 0;
    for (int first = 0; first < tiles; first += 32 * kSortWarps * kScanEach) {
        const int at = first + int(threadIdx.x) * kScanEach;
        int own[kScanEach], sum = 0;
#pragma unroll
        for (int i = 0; i < kScanEach; ++i) {
            own[i] = at + i < tiles ? own_counts[at + i] : 0;
            sum += own[i];
        }
        int all, before = carry + block_sums(sum, all) - sum;
        carry += all;
#pragma unroll
        for (int i = 0; i < kScanEach; ++i) {
            if (at + i < tiles) own_counts[at + i] = before;
            before += own[i];
        }
    }
    if (threadIdx.x == 0) totals[blockIdx.x] = carry;
}

/// Moves the entries of a tile to their places by one digit. A warp has consecutive entries and
/// walks them in order, so equal digits keep their order.
__global__ void __launch_bounds__(32 * kSortWarps)
    sort_scatter_kernel(const int64_t* indices, const int32_t* unit, const int32_t* entry,
                        int entries, int64_t units, int shift, const int* offsets,
                        const int* totals, int32_t* out_unit, int32_t* out_entry) {
    __shared__ int place[kSortWarps][kDigits];
    const SortSource source{indices, unit, entry, units};
    const int thread = int(threadIdx.x), warp = warp_id(), lane = lane_id();
    for (int w = 0; w < kSortWarps; ++w) place[w][thread] = 0;
    __syncthreads();
    const int begin = int(blockIdx.x) * kSortTile + warp * kSortSteps * 32;
    const auto digit_of = [&](int u) { return (u >> shift) & (kDigits - 1); };
    for (int i = lane; i < kSortSteps * 32 && begin + i < entries; i += 32)
        atomicAdd(&place[warp][digit_of(source.unit_at(begin + i))], 1);
    __syncthreads();
    // A thread a digit: counts become the place of each warp's first entry.
    const int total = totals[thread];
    int all, at = block_sums(total, all) - total;
    at += offsets[int64_t(thread) * gridDim.x + blockIdx.x];
    for (int w = 0; w < kSortWarps; ++w) {
        const int count = place[w][thread];
        place[w][thread] = at;
        at += count;
    }
    __syncthreads();
    for (int i = lane; i < kSortSteps * 32; i += 32) {
        const int e = begin + i;
        const bool inside = e < entries;
        const int u = inside ? source.unit_at(e) : 0, digit = digit_of(u);
        // The lanes with the same digit, from a ballot on each of its bits.
        unsigned same = __ballot_sync(kAllLanes, inside);
#pragma unroll
        for (int bit = 0; bit < 8; ++bit) {
            const bool set = (digit >> bit) & 1;
            const unsigned lanes = __ballot_sync(kAllLanes, set);
            same &= set ? lanes : ~lanes;
        }
        const int rank = __popc(same & lanes_below());
        const int to = place[warp][digit] + rank;
        __syncwarp();
        if (inside) {
            if (rank == 0) place[warp][digit] += __popc(same);
            out_unit[to] = u;
            out_entry[to] = source.entry_at(e);
        }
        __syncwarp();
    }
}

/// start[i]: the first position of a unit of at least i, by bisection; i in [0, units].
__global__ void __launch_bounds__(256)
    sort_starts_kernel(const int32_t* unit, int entries, int64_t units, int32_t* start) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i > units) return;
    int low = 0, high = entries;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (unit[middle] < i)
            low = middle + 1;
        else
            high = middle;
    }
    start[i] = low;
}

// -------------------------------------------------------------------------------------- combine

/// A pack of float32 sums in the element type X.
template <class X>
__device__ Pack<typename X::Bits, 4> rounded_pack(const Pack<float, 4>& sum) {
    Pack<typename X::Bits, 4> pack;
#pragma unroll
    for (int v = 0; v < 4; ++v) pack.at[v] = X::rounded(sum.at[v]);
    return pack;
}

/// Writes it, or adds it to what stands there.
template <class X, bool ACCUMULATE>
__device__ void store_sum(typename X::Bits* row, int at, int n, bool aligned, Pack<float, 4> sum) {
    if constexpr (ACCUMULATE) {
        const auto there = load_pack<4>(row, at, n, aligned);
#pragma unroll
        for (int v = 0; v < 4; ++v) sum.at[v] += X::value(there.at[v]);
    }
    store_pack<4>(row, at, n, aligned, rounded_pack<X>(sum));
}

/// The sums of a chunk of positions, 128 columns a warp. A list inside the chunk goes to out; one
/// that began before, to the chunk's first partial row; one that goes on after, to the second.
template <class X, bool ACCUMULATE>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 6)
    combine_kernel(const int32_t* start, const int32_t* unit, const int32_t* entry, const float* c,
                   int entries, int batch, int m, const typename X::Bits* x, int64_t x_stride,
                   int n, int tiles, typename X::Bits* out, float* partial) {
    constexpr int V = 4;
    using Bits = typename X::Bits;
    const int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    const int64_t first = job / tiles * kChunk;
    if (first >= entries) return;
    const int begin = int(first), end = min(entries, begin + kChunk);
    const int at = int(job % tiles) * kColumns + lane_id() * V;
    const bool aligned = rows_aligned<Bits, V>(x, x_stride);
    const bool aligned_out = n % V == 0;
    float* first_partial = partial + int64_t(begin / kChunk) * 2 * n;
    int current = unit[begin];
    float sum[V] = {0.0f, 0.0f, 0.0f, 0.0f};
    const auto flush = [&] {
        const bool earlier = start[current] < begin;
        if (earlier || start[current + 1] > end)
            store_pack<V>(first_partial + (earlier ? 0 : n), at, n, aligned_out,
                          Pack<float, V>{{sum[0], sum[1], sum[2], sum[3]}});
        else
            store_sum<X, ACCUMULATE>(out + int64_t(current) * n, at, n, aligned_out,
                                     {{sum[0], sum[1], sum[2], sum[3]}});
    };
    by_whole(rows_whole<Bits, V>(x, x_stride, n), [&](auto whole) {
        for (int step = begin; step < end; step += 32) {
            // A lane reads one position and hands it to all. Past the end: nothing, of the last
            // unit.
            const int own = step + lane_id();
            const int e = entry[min(own, end - 1)], own_unit = unit[min(own, end - 1)];
            const float factor = own < end ? c[e] : 0.0f;
            const int row = e / m % batch;
            const int size = own < end ? n : 0;
            for (int group = 0; group < 32; group += kAhead) {
                Pack<Bits, V> ahead[kAhead];
#pragma unroll
                for (int j = 0; j < kAhead; ++j) {
                    const Bits* from = x + __shfl_sync(kAllLanes, row, group + j) * x_stride;
                    const int until = __shfl_sync(kAllLanes, size, group + j);
                    ahead[j] = load_pack<V, decltype(whole)::value>(from, at, until, aligned);
                }
#pragma unroll
                for (int j = 0; j < kAhead; ++j) {
                    const int next = __shfl_sync(kAllLanes, own_unit, group + j);
                    const float f = __shfl_sync(kAllLanes, factor, group + j);
                    if (next != current) {
                        flush();
                        current = next;
#pragma unroll
                        for (int v = 0; v < V; ++v) sum[v] = 0.0f;
                    }
#pragma unroll
                    for (int v = 0; v < V; ++v) sum[v] = fmaf(f, X::value(ahead[j].at[v]), sum[v]);
                }
            }
        }
    });
    flush();
}

/// What combine leaves: zeros of the empty lists, and the lists of several chunks, whose partial
/// rows are added in order.
template <class X, bool ACCUMULATE>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    combine_edges_kernel(const int32_t* start, int64_t units, int n, int tiles,
                         const float* partial, typename X::Bits* out) {
    constexpr int V = 4;
    const int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    const int64_t unit = job / tiles;
    if (unit >= units) return;
    const int begin = start[unit], end = start[unit + 1];
    const int low = begin / kChunk, high = (end - 1) / kChunk;
    if (begin < end ? low == high : ACCUMULATE) return;
    const int at = int(job % tiles) * kColumns + lane_id() * V;
    const bool aligned = n % V == 0;
    Pack<float, V> sum{};
    if (begin < end) {
        sum = load_pack<V>(partial + (int64_t(low) * 2 + 1) * n, at, n, aligned);
#pragma unroll 4
        for (int chunk = low + 1; chunk <= high; ++chunk) {
            const auto more = load_pack<V>(partial + int64_t(chunk) * 2 * n, at, n, aligned);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += more.at[v];
        }
    }
    store_sum<X, ACCUMULATE>(out + unit * n, at, n, aligned, sum);
}

// ---------------------------------------------------------------------------------------- outer

/// A block a unit and kOuterTile columns. Each warp adds up a part of the list in a row of its own
/// in shared memory (the indices of a sparse row are distinct, so lanes do not meet); then the rows
/// of the warps are added in order.
__global__ void __launch_bounds__(32 * kOuterWarps, 8)
    outer_kernel(const int32_t* start, const int32_t* entry, const float* c, int m,
                 const int64_t* indices, const float* values, int64_t columns, int width, int tiles,
                 bool accumulate, float* out) {
    constexpr int kTogether = 4;  // sparse rows read ahead of their additions
    extern __shared__ float rows[];
    const int64_t unit = blockIdx.x / tiles, first = int64_t(blockIdx.x % tiles) * width;
    const int size = int(columns - first < width ? columns - first : width);
    const int lane = lane_id(), warp = warp_id();
    float* sum = rows + warp * width;
    for (int i = lane; i < size; i += 32) sum[i] = 0.0f;
    __syncwarp();
    const int begin = start[unit], end = start[unit + 1];
    const int each = (end - begin + kOuterWarps - 1) / kOuterWarps;
    const int from = begin + warp * each, to = min(end, from + each);
    for (int step = from; step < to; step += 32) {
        const int own = step + lane, count = min(32, to - step);
        const int e = own < to ? entry[own] : 0;
        const float factor = own < to ? c[e] : 0.0f;
        const int own_row = e / m;
        for (int group = 0; group < count; group += kTogether) {
            for (int j = lane; j < (m + 31) / 32 * 32; j += 32) {
                int at[kTogether];
                float add[kTogether];
#pragma unroll
                for (int g = 0; g < kTogether; ++g) {
                    const int source = min(group + g, 31);
                    const int64_t row = __shfl_sync(kAllLanes, own_row, source);
                    const float f = __shfl_sync(kAllLanes, factor, source);
                    const bool there = group + g < count && j < m;
                    const int64_t column = there ? indices[row * m + j] - first : -1;
                    at[g] = column >= 0 && column < size ? int(column) : -1;
                    add[g] = there ? f * values[row * m + j] : 0.0f;
                }
#pragma unroll
                for (int g = 0; g < kTogether; ++g) {
                    if (at[g] >= 0) sum[at[g]] += add[g];
                    __syncwarp();
                }
            }
        }
    }
    __syncthreads();
    float* to_row = out + unit * columns + first;
    for (int i = int(threadIdx.x); i < size; i += 32 * kOuterWarps) {
        float total = accumulate ? to_row[i] : 0.0f;
#pragma unroll
        for (int w = 0; w < kOuterWarps; ++w) total += rows[w * width + i];
        to_row[i] = total;
    }
}

/// A warp a row of the batch and kAtomicUnits of its entries.
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    outer_atomic_kernel(const int64_t* rows, const float* c, int64_t batch, int m, int tiles,
                        int64_t units, const int64_t* indices, const float* values, int64_t columns,
                        float* out) {
    const int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    const int64_t row = job / tiles;
    if (row >= batch) return;
    const int first = int(job % tiles) * kAtomicUnits, count = min(kAtomicUnits, m - first);
    const int own = first + lane_id();
    const bool holds = lane_id() < count;
    const int64_t unit = holds ? rows[row * m + own] : 0;
    const float factor = holds ? c[row * m + own] : 0.0f;
    if (unit < 0 || unit >= units) __trap();
    for (int step = 0; step < m; step += 32) {
        const int j = step + lane_id();
        const int64_t column = j < m ? indices[row * m + j] : 0;
        const float value = j < m ? values[row * m + j] : 0.0f;
        if (column < 0 || column >= columns) __trap();
        for (int i = 0; i < count; ++i) {
            const int64_t to = __shfl_sync(kAllLanes, unit, i);
            const float f = __shfl_sync(kAllLanes, factor, i);
            if (j < m) atomicAdd(out + to * columns + column, f * value);
        }
    }
}

// --------------------------------------------------------------------------- product on support

/// A warp a row and 32 entries of its lower support.
template <class S>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 10)
    product_on_support_kernel(const int64_t* upper, const float* c, const int64_t* lower,
                              int64_t rows, int m, int tiles, const typename S::Bits* s,
                              int64_t row_stride, int64_t col_stride, int64_t units, float* out) {
    const int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    const int64_t row = job / tiles;
    if (row >= rows) return;
    const int j = int(job % tiles) * 32 + lane_id();
    const int64_t at = j < m ? lower[row * m + j] : 0;
    if (at < 0 || at >= units) __trap();
    const typename S::Bits* column = s + at * col_stride;
    float sum = 0.0f;
    for (int first = 0; first < m; first += 32) {
        const int own = first + lane_id(), count = min(32, m - first);
        const float value = own < m ? c[row * m + own] : 0.0f;
        const int64_t index = own < m ? upper[row * m + own] : 0;
        if (index < 0 || index >= units) __trap();
#pragma unroll 8
        for (int i = 0; i < count; ++i) {
            const float factor = __shfl_sync(kAllLanes, value, i);
            const int64_t unit = __shfl_sync(kAllLanes, index, i);
            sum = fmaf(factor, S::value(column[unit * row_stride]), sum);
        }
    }
    if (j < m) out[row * m + j] = sum;
}

// --------------------------------------------------------------------------------- the launchers

namespace {

int64_t sort_tiles(int64_t entries) { return ceil_div(entries, kSortTile); }

int64_t padded(int64_t n) { return ceil_div(n, 4) * 4; }  // int32: multiples of 16 bytes

/// Calls run with the type of the elements.
template <class Run>
void by_type(DType dtype, Run run) {
    switch (dtype) {
        case DType::f32:
            return run(F32());
        case DType::f16:
            return run(F16());
        case DType::bf16:
            return run(BF16());
    }
}

}  // namespace

size_t group_workspace_bytes(int64_t entries) {
    return size_t(4 * (2 * padded(entries) + kDigits * (sort_tiles(entries) + 1)));
}

void group(const int64_t* indices, int64_t entries, int64_t units, UnitLists lists, void* workspace,
           cudaStream_t stream) {
    if (entries > kMostSorted || units > INT32_MAX)
        throw std::runtime_error("group: too many entries to sort");
    if (entries == 0) {
        check(cudaMemsetAsync(lists.start, 0, size_t(units + 1) * 4, stream), "group");
        return;
    }
    int bits = 1;
    while ((int64_t(1) << bits) < units) ++bits;
    const int passes = (bits + 7) / 8, tiles = int(sort_tiles(entries));
    int32_t* spare_unit = static_cast<int32_t*>(workspace);
    int32_t* spare_entry = spare_unit + padded(entries);
    int* totals = spare_entry + padded(entries);
    int* counts = totals + kDigits;
    const int64_t* source = indices;
    const int32_t *unit = nullptr, *entry = nullptr;
    for (int pass = 0; pass < passes; ++pass) {
        const bool spare = (passes - pass) % 2 == 0;  // the last pass writes the result
        int32_t* to_unit = spare ? spare_unit : lists.unit;
        int32_t* to_entry = spare ? spare_entry : lists.entry;
        sort_count_kernel<<<tiles, 32 * kSortWarps, 0, stream>>>(source, unit, int(entries), units,
                                                                 8 * pass, counts);
        launched("sort_count_kernel");
        sort_scan_kernel<<<kDigits, 32 * kSortWarps, 0, stream>>>(counts, tiles, totals);
        launched("sort_scan_kernel");
        sort_scatter_kernel<<<tiles, 32 * kSortWarps, 0, stream>>>(
            source, unit, entry, int(entries), units, 8 * pass, counts, totals, to_unit, to_entry);
        launched("sort_scatter_kernel");
        source = nullptr;
        unit = to_unit;
        entry = to_entry;
    }
    const char* name = "sort_starts_kernel";
    sort_starts_kernel<<<grid_size(ceil_div(units + 1, 256), name), 256, 0, stream>>>(
        lists.unit, int(entries), units, lists.start);
    launched(name);
}

size_t combine_workspace_bytes(int64_t entries, int64_t n) {
    return size_t(ceil_div(entries, kChunk) * 2 * n * 4);
}

void combine(UnitLists lists, const float* c, int64_t entries, int64_t batch, int64_t m,
             int64_t units, DType dtype, const void* x, int64_t x_stride, int64_t n,
             bool accumulate, void* out, void* workspace, cudaStream_t stream) {
    if (units == 0 || n == 0) return;
    const int64_t tiles = ceil_div(n, kColumns), jobs = ceil_div(entries, kChunk) * tiles;
    float* partial = static_cast<float*>(workspace);
    const auto run = [&](auto of_x, auto adds) {
        using X = decltype(of_x);
        using Bits = typename X::Bits;
        constexpr bool kAdds = decltype(adds)::value;
        const char* name = "combine_kernel";
        if (entries > 0) {
            combine_kernel<X, kAdds>
                <<<grid_size(ceil_div(jobs, kWarpsPerBlock), name), 32 * kWarpsPerBlock, 0,
                   stream>>>(lists.start, lists.unit, lists.entry, c, int(entries), int(batch),
                             int(m), static_cast<const Bits*>(x), x_stride, int(n), int(tiles),
                             static_cast<Bits*>(out), partial);
            launched(name);
        }
        name = "combine_edges_kernel";
        combine_edges_kernel<X, kAdds>
            <<<grid_size(ceil_div(units * tiles, kWarpsPerBlock), name), 32 * kWarpsPerBlock, 0,
               stream>>>(lists.start, units, int(n), int(tiles), partial, static_cast<Bits*>(out));
        launched(name);
    };
    if (!accumulate) return by_type(dtype, [&](auto of_x) { run(of_x, std::false_type()); });
    if (dtype != DType::f32) throw std::runtime_error("combine: sums to add to are float32");
    run(F32(), std::true_type());
}

void outer(UnitLists lists, const float* c, int64_t m, int64_t units, const int64_t* indices,
           const float* values, int64_t columns, bool accumulate, float* out, cudaStream_t stream) {
    if (units == 0 || columns == 0) return;
    const char* name = "outer_kernel";
    const int64_t width = std::min<int64_t>(columns, kOuterTile);
    const int64_t tiles = ceil_div(columns, width);
    const size_t shared = size_t(width * kOuterWarps * 4);
    allow_shared(outer_kernel, shared, 0, name);
    outer_kernel<<<grid_size(units * tiles, name), 32 * kOuterWarps, shared, stream>>>(
        lists.start, lists.entry, c, int(m), indices, values, columns, int(width), int(tiles),
        accumulate, out);
    launched(name);
}

void outer_atomic(const int64_t* rows, const float* c, int64_t batch, int64_t m, int64_t units,
                  const int64_t* indices, const float* values, int64_t columns, bool accumulate,
                  float* out, cudaStream_t stream) {
    if (!accumulate)
        check(cudaMemsetAsync(out, 0, size_t(units * columns) * 4, stream), "outer_atomic");
    if (batch == 0 || m == 0) return;
    const char* name = "outer_atomic_kernel";
    const int64_t tiles = ceil_div(m, kAtomicUnits);
    outer_atomic_kernel<<<grid_size(ceil_div(batch * tiles, kWarpsPerBlock), name),
                          32 * kWarpsPerBlock, 0, stream>>>(rows, c, batch, int(m), int(tiles),
                                                            units, indices, values, columns, out);
    launched(name);
}

void product_on_support(const int64_t* upper, const float* c, const int64_t* lower, int64_t rows,
                        int64_t m, DType dtype, const void* s, int64_t row_stride,
                        int64_t col_stride, int64_t units, float* out, cudaStream_t stream) {
    if (rows == 0 || m == 0) return;
    const char* name = "product_on_support_kernel";
    const int64_t tiles = ceil_div(m, 32);
    const unsigned blocks = grid_size(ceil_div(rows * tiles, kWarpsPerBlock), name);
    by_type(dtype, [&](auto of_s) {
        using S = decltype(of_s);
        product_on_support_kernel<S><<<blocks, 32 * kWarpsPerBlock, 0, stream>>>(
            upper, c, lower, rows, int(m), int(tiles), static_cast<const typename S::Bits*>(s),
            row_stride, col_stride, units, out);
    });
    launched(name);
}

}  // namespace deepl0::cuda
