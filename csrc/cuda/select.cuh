// Exact selection of the m entries of largest key in a row, ties to the lowest index: by one warp
// with the row in registers, or by one block with the row in shared or global memory.
#pragma once

#include "element.cuh"

namespace deepl0::cuda {

/// What is kept: every key above `key`, and of those equal to it the first `ties` in index order.
struct Cut {
    int key;
    int ties;

    /// Without the zeros among what is kept, which of a nonnegative code pass no gradient.
    __device__ Cut above_zero() const { return key > 0 ? *this : Cut{0, 0}; }
};

// ------------------------------------------------------------------------- one warp, registers
// Lane l holds ITEMS entries in packs of V: item i is entry ((i / V) * 32 + l) * V + i % V, so that
// a load of packs is coalesced. Index order is the order of (i / V, l, i % V).

template <int V>
__device__ int entry_of(int item) {
    return ((item / V) * 32 + lane_id()) * V + item % V;
}

/// A key that at least m of the keys reach: every group of keys has one that reaches the smallest
/// of the groups' maxima. With G groups a lane there are 32 G; 0 where that is fewer than m.
template <int ITEMS>
__device__ int warp_floor(const int (&key)[ITEMS], int m) {
    constexpr int G = ITEMS >= 8 ? 4 : 1;
    int largest[G];
#pragma unroll
    for (int g = 0; g < G; ++g) {
        largest[g] = key[g];
#pragma unroll
        for (int i = g + G; i < ITEMS; i += G) largest[g] = max(largest[g], key[i]);
    }
    if (m > 32 * G) return 0;
    if constexpr (G == 4) {
        if (m <= 64) {  // groups twice as large
            largest[0] = max(largest[0], largest[1]);
            largest[1] = max(largest[2], largest[3]);
            if (m <= 32) largest[0] = largest[1] = max(largest[0], largest[1]);
            return max(0, __reduce_min_sync(kAllLanes, min(largest[0], largest[1])));
        }
        largest[0] = min(min(largest[0], largest[1]), min(largest[2], largest[3]));
    }
    return max(0, __reduce_min_sync(kAllLanes, largest[0]));
}

/// The m-th largest of the p keys that are not padding, 0 < m <= p, by bisection between a key that
/// m of them reach and the largest: at most BITS steps of ITEMS comparisons and one warp sum. Stops
/// as soon as exactly m keys reach the trial.
template <int ITEMS>
__device__ Cut warp_cut(const int (&key)[ITEMS], int p, int m) {
    if (m == p) return {-1, 0};
    int largest = key[0];
#pragma unroll
    for (int i = 1; i < ITEMS; ++i) largest = max(largest, key[i]);
    // At least m keys reach low, `above` < m of them reach high.
    int low = warp_floor(key, m), high = __reduce_max_sync(kAllLanes, largest) + 1, above = 0;
#pragma unroll 1
    while (high - low > 1) {
        const int trial = low + (high - low) / 2;
        int n = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) n += key[i] >= trial;
        n = __reduce_add_sync(kAllLanes, n);
        if (n == m) return {trial - 1, 0};
        if (n > m) {
            low = trial;
        } else {
            high = trial;
            above = n;
        }
    }
    return {low, m - above};
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

/// The same by one scan of packed counts and a loop over the lane's own set bits: cheaper for few
/// bits, but `item` is no constant, so use() must not index registers by it.
template <int ITEMS, int V, class Use>
__device__ void for_each_kept(uint32_t bits, Use use) {
    // Counts of a pack over the lanes stand side by side: up to 32 V each.
    constexpr int kField = V <= 4 ? 8 : 16, kEach = 32 / kField;
    constexpr uint32_t kOnes = (1u << kField) - 1u, kPack = (1u << V) - 1u;
    int base = 0;
#pragma unroll
    for (int first = 0; first < ITEMS; first += kEach * V) {
        uint32_t counts = 0;
#pragma unroll
        for (int j = 0; j < kEach; ++j)
            if (first + j * V < ITEMS)
                counts |= uint32_t(__popc((bits >> (first + j * V)) & kPack)) << (j * kField);
        uint32_t inclusive = counts;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const uint32_t other = __shfl_up_sync(kAllLanes, inclusive, d);
            if (lane_id() >= d) inclusive += other;
        }
        const uint32_t all = __shfl_sync(kAllLanes, inclusive, 31), before = inclusive - counts;
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            if (first + j * V >= ITEMS) break;
            int rank = base + int((before >> (j * kField)) & kOnes);
            uint32_t rest = (bits >> (first + j * V)) & kPack;
#pragma unroll 1
            for (; rest != 0; rest &= rest - 1) use(first + j * V + __ffs(int(rest)) - 1, rank++);
            base += int((all >> (j * kField)) & kOnes);
        }
    }
}

/// Bit i: whether item i of this lane is kept by the cut.
template <int ITEMS, int V>
__device__ uint32_t warp_keep(const int (&key)[ITEMS], Cut cut) {
    static_assert(ITEMS <= 32 && ITEMS % V == 0, "one bit an item, whole packs");
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

/// The sum over the lanes below of a number up to 7; `all` gets that over all lanes.
__device__ inline int lanes_before(int n, unsigned below, int& all) {
    int before = 0;
    all = 0;
#pragma unroll
    for (int bit = 0; bit < 3; ++bit) {
        const unsigned lanes = __ballot_sync(kAllLanes, (n >> bit) & 1);
        before += __popc(lanes & below) << bit;
        all += __popc(lanes) << bit;
    }
    return before;
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

/// The sum of n over the threads before this one. All threads; holds a barrier.
__device__ inline int threads_before(BlockSelect& s, int n) {
    int inclusive = n;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(kAllLanes, inclusive, d);
        if (lane_id() >= d) inclusive += other;
    }
    if (lane_id() == 31) s.warp_total[warp_id()] = inclusive;
    __syncthreads();
    const int earlier = lane_id() < warp_id() ? s.warp_total[lane_id()] : 0;
    return __reduce_add_sync(kAllLanes, earlier) + inclusive - n;
}

/// Finds the digit of the need-th largest: s.digit with the entries above it (s.above) and in it
/// (s.count). The bins of `width` bits are counted. All threads; ends with a barrier.
__device__ inline void find_digit(BlockSelect& s, int width, int need) {
    const int bins = 1 << width, threads = int(blockDim.x), thread = int(threadIdx.x);
    const int each = (bins + threads - 1) / threads;
    // Thread 0 has the highest bins.
    const int high = bins - 1 - thread * each;
    int sum = 0;
    for (int b = 0; b < each && high - b >= 0; ++b) sum += s.bins[high - b];
    int above = threads_before(s, sum);
    if (above < need && need <= above + sum) {
        int b = high;
        while (above + s.bins[b] < need) above += s.bins[b--];
        s.digit = b;
        s.above = above;
        s.count = s.bins[b];
    }
    __syncthreads();
}

/// A row is walked by four entries: [i, i + 4), i a multiple of 4.
constexpr int kTogether = 4;

/// Their keys; padding from `size` on, without a test an entry where the pack is whole.
template <class Bits, class KeyOfBits>
__device__ void keys_of(const Bits* row, int i, int size, bool aligned, KeyOfBits key_of,
                        int (&key)[kTogether]) {
    if (aligned && i + kTogether <= size) {
        const auto pack = *reinterpret_cast<const Pack<Bits, kTogether>*>(row + i);
#pragma unroll
        for (int v = 0; v < kTogether; ++v) key[v] = key_of(pack.at[v]);
    } else {
#pragma unroll
        for (int v = 0; v < kTogether; ++v) key[v] = i + v < size ? key_of(row[i + v]) : kPadding;
    }
}

/// Radix select: the cut of m of p keys, 0 < m <= p, by digits from the top (11, 10, 10 bits of a
/// 31-bit key; 8, 7 of a 15-bit one). keys(i, key) gives four. One pass over the row a digit; stops
/// when the digit's entries are exactly those still needed. Counts are integers: the order of the
/// atomic additions cannot be seen.
template <int BITS, class Keys>
__device__ Cut block_cut(BlockSelect& s, Keys keys, int p, int m) {
    if (m >= p) return {-1, 0};
    int prefix = 0, need = m, shift = BITS;
    while (shift > 0) {
        const int width = BITS == 31 ? (shift == 31 ? 11 : 10) : (shift == 15 ? 8 : 7);
        shift -= width;
        for (int b = int(threadIdx.x); b < 1 << width; b += int(blockDim.x)) s.bins[b] = 0;
        __syncthreads();
        // Entries of the prefix: what is left of them is below 1 << width.
        const int base = prefix << width, stop = 1 << width;
#pragma unroll 2
        for (int i = int(threadIdx.x) * kTogether; i < p; i += int(blockDim.x) * kTogether) {
            int key[kTogether];
            keys(i, key);
#pragma unroll
            for (int v = 0; v < kTogether; ++v) {
                const unsigned digit = unsigned((key[v] >> shift) - base);
                if (digit < unsigned(stop)) atomicAdd(&s.bins[digit], 1);
            }
        }
        __syncthreads();
        find_digit(s, width, need);
        prefix = base | s.digit;
        need -= s.above;
        if (s.count == need) return {(prefix << shift) - 1, 0};
    }
    return {prefix, need};
}

/// Calls use(i, keep, rank) for i = 0, 4, ... below p, the lanes of a warp together, some of them
/// with i from p on and keep 0: bit v of keep says whether entry i + v is kept, rank counts the
/// kept before i. A warp walks consecutive entries, so that what it writes is in index order. Two
/// passes over the row.
template <class Keys, class Use>
__device__ void block_for_each(BlockSelect& s, Keys keys, int p, Cut cut, Use use) {
    constexpr int kStep = 32 * kTogether;
    const int warps = int(blockDim.x) / 32, warp = warp_id(), lane = lane_id();
    const int range = (p + kStep * warps - 1) / (kStep * warps) * kStep;
    const int begin = min(p, warp * range), end = min(p, begin + range);
    int above = 0, ties = 0;
#pragma unroll 2
    for (int i = begin + lane * kTogether; i < end; i += kStep) {
        int key[kTogether];
        keys(i, key);
#pragma unroll
        for (int v = 0; v < kTogether; ++v) above += key[v] > cut.key;
        if (cut.ties > 0) {
#pragma unroll
            for (int v = 0; v < kTogether; ++v) ties += key[v] == cut.key;
        }
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
    for (int first = begin; first < end; first += kStep) {
        const int i = first + lane * kTogether;
        int key[kTogether] = {kPadding, kPadding, kPadding, kPadding};
        if (i < end) keys(i, key);
        unsigned keep = 0;
#pragma unroll
        for (int v = 0; v < kTogether; ++v) keep |= unsigned(key[v] > cut.key) << v;
        if (cut.ties > ties) {  // ties are left
            unsigned tied = 0;
#pragma unroll
            for (int v = 0; v < kTogether; ++v) tied |= unsigned(key[v] == cut.key) << v;
            int all = 0;
            int at = ties + lanes_before(__popc(tied), below, all);
            ties += all;
#pragma unroll
            for (int v = 0; v < kTogether; ++v)
                if ((tied >> v) & 1u) keep |= unsigned(at++ < cut.ties) << v;
        }
        int all = 0, before = 0;
        if (__any_sync(kAllLanes, keep != 0)) before = lanes_before(__popc(keep), below, all);
        use(i, keep, rank + before);
        rank += all;
    }
}

}  // namespace deepl0::cuda
