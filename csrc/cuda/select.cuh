// Exact selection of the m entries of largest key in a row, ties to the lowest index: by one warp
// with the row in registers, or by one block with the row in shared or global memory.
#pragma once

#include "element.cuh"

namespace deepl0::cuda {

/// What is kept: every key above `key`, and of those equal to it the first `ties` in index order.
struct Cut {
    int key;
    int ties;
};

// ------------------------------------------------------------------------- one warp, registers
// Lane l holds ITEMS entries in packs of V: item i is entry ((i / V) * 32 + l) * V + i % V, so that
// a load of packs is coalesced. Index order is the order of (i / V, l, i % V).

template <int V>
__device__ int entry_of(int item) {
    return ((item / V) * 32 + lane_id()) * V + item % V;
}

/// The m-th largest of the p keys that are not padding, 0 < m <= p: its bits are found from the top
/// by counting, at most BITS steps of ITEMS comparisons and one warp sum. Stops as soon as exactly
/// m keys reach the trial.
template <int BITS, int ITEMS>
__device__ Cut warp_cut(const int (&key)[ITEMS], int p, int m) {
    int cut = 0, reach = p;
#pragma unroll 1
    for (int bit = BITS - 1; bit >= 0 && reach != m; --bit) {
        const int trial = cut | (1 << bit);
        int n = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) n += key[i] >= trial;
        n = __reduce_add_sync(kAllLanes, n);
        if (n >= m) {
            cut = trial;
            reach = n;
        }
    }
    if (reach == m) return {cut - 1, 0};
    int above = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) above += key[i] > cut;
    return {cut, m - __reduce_add_sync(kAllLanes, above)};
}

/// Calls use(item, rank) for the items of this lane whose bit is set, rank counting the set bits of
/// all lanes in index order.
template <int ITEMS, int V, class Use>
__device__ void for_each_ranked(uint32_t bits, Use use) {
    const unsigned below = lanes_below();
    int base = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; k += V) {
        int rank = base;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const unsigned lanes = __ballot_sync(kAllLanes, (bits >> (k + v)) & 1u);
            rank += __popc(lanes & below);
            base += __popc(lanes);
        }
#pragma unroll
        for (int v = 0; v < V; ++v)
            if ((bits >> (k + v)) & 1u) use(k + v, rank++);
    }
}

/// Bit i: whether item i of this lane is among the m.
template <int BITS, int ITEMS, int V>
__device__ uint32_t warp_keep(const int (&key)[ITEMS], int p, int m) {
    static_assert(ITEMS <= 32 && ITEMS % V == 0, "one bit an item, whole packs");
    const Cut cut = warp_cut<BITS>(key, p, m);
    uint32_t keep = 0, tie = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        keep |= uint32_t(key[i] > cut.key) << i;
        tie |= uint32_t(key[i] == cut.key) << i;
    }
    if (cut.ties > 0) {
        for_each_ranked<ITEMS, V>(tie, [&](int item, int rank) {
            if (rank < cut.ties) keep |= 1u << item;
        });
    }
    return keep;
}

// ------------------------------------------------------------------------------------ one block

/// Shared memory of a block's selection.
struct BlockSelect {
    static constexpr int kBins = 2048;
    int bins[kBins];
    int warp_total[32];
    int warp_above[32], warp_ties[32];
    int digit, above, count;
};

/// Finds the digit of the need-th largest: s.digit with the entries above it (s.above) and in it
/// (s.count). The bins of `width` bits are counted. All threads; ends with a barrier.
__device__ inline void find_digit(BlockSelect& s, int width, int need) {
    const int bins = 1 << width, threads = int(blockDim.x), thread = int(threadIdx.x);
    const int each = (bins + threads - 1) / threads;
    // Thread 0 has the highest bins.
    const int high = bins - 1 - thread * each;
    int sum = 0;
    for (int b = 0; b < each && high - b >= 0; ++b) sum += s.bins[high - b];
    int inclusive = sum;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(kAllLanes, inclusive, d);
        if (lane_id() >= d) inclusive += other;
    }
    if (lane_id() == 31) s.warp_total[warp_id()] = inclusive;
    __syncthreads();
    const int earlier = lane_id() < warp_id() ? s.warp_total[lane_id()] : 0;
    int above = __reduce_add_sync(kAllLanes, earlier) + inclusive - sum;
    if (above < need && need <= above + sum) {
        int b = high;
        while (above + s.bins[b] < need) above += s.bins[b--];
        s.digit = b;
        s.above = above;
        s.count = s.bins[b];
    }
    __syncthreads();
}

/// Radix select: the cut of m of the p keys key_at(0..p), 0 < m <= p, by digits from the top (11,
/// 10, 10 bits of a 31-bit key; 8, 7 of a 15-bit one). One pass over the row a digit; stops when
/// the digit's entries are exactly those still needed. Counts are integers: the order of the atomic
/// additions cannot be seen.
template <int BITS, class Key>
__device__ Cut block_cut(BlockSelect& s, Key key_at, int p, int m) {
    if (m >= p) return {-1, 0};
    int prefix = 0, need = m, shift = BITS;
    while (shift > 0) {
        const int width = BITS == 31 ? (shift == 31 ? 11 : 10) : (shift == 15 ? 8 : 7);
        shift -= width;
        for (int b = int(threadIdx.x); b < 1 << width; b += int(blockDim.x)) s.bins[b] = 0;
        __syncthreads();
        for (int i = int(threadIdx.x); i < p; i += int(blockDim.x)) {
            const int key = key_at(i) >> shift;
            if (key >> width == prefix) atomicAdd(&s.bins[key & ((1 << width) - 1)], 1);
        }
        __syncthreads();
        find_digit(s, width, need);
        prefix = prefix << width | s.digit;
        need -= s.above;
        if (s.count == need) return {(prefix << shift) - 1, 0};
    }
    return {prefix, need};
}

/// Calls use(i, keep, rank, lanes) for every entry i in [0, p), and for a few from p on with keep
/// false: rank counts the kept before i, `lanes` has the kept of entries [i & ~31, i | 31]. A warp
/// walks consecutive entries, so that what it writes is in index order. Two passes over the row.
template <class Key, class Use>
__device__ void block_for_each(BlockSelect& s, Key key_at, int p, Cut cut, Use use) {
    const int warps = int(blockDim.x) / 32, warp = warp_id(), lane = lane_id();
    const int range = (p + 32 * warps - 1) / (32 * warps) * 32;
    const int begin = min(p, warp * range), end = min(p, begin + range);
    int above = 0, ties = 0;
    for (int i = begin + lane; i < end; i += 32) {
        const int key = key_at(i);
        above += key > cut.key;
        ties += key == cut.key;
    }
    above = __reduce_add_sync(kAllLanes, above);
    ties = __reduce_add_sync(kAllLanes, ties);
    if (lane == 0) {
        s.warp_above[warp] = above;
        s.warp_ties[warp] = ties;
    }
    __syncthreads();
    above = __reduce_add_sync(kAllLanes, lane < warp ? s.warp_above[lane] : 0);
    ties = __reduce_add_sync(kAllLanes, lane < warp ? s.warp_ties[lane] : 0);
    int rank = above + min(ties, cut.ties);
    const unsigned below = lanes_below();
    for (int first = begin; first < end; first += 32) {
        const int i = first + lane;
        const int key = i < end ? key_at(i) : kPadding;
        bool keep = key > cut.key;
        if (cut.ties > 0) {
            const unsigned tied = __ballot_sync(kAllLanes, key == cut.key);
            keep = keep || (key == cut.key && ties + __popc(tied & below) < cut.ties);
            ties += __popc(tied);
        }
        const unsigned lanes = __ballot_sync(kAllLanes, keep);
        use(i, keep, rank + __popc(lanes & below), lanes);
        rank += __popc(lanes);
    }
}

}  // namespace deepl0::cuda
