// The kernel of top_m_once.h.
#include <cmath>

#include "select.cuh"
#include "top_m_once.h"

namespace deepl0::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 4;           // packs of 16 bytes of a thread in a tile
constexpr int kWords = 4 * kLoads;  // of 4 bytes
constexpr int kBlocks = 4;          // of a multiprocessor
constexpr int kSmall = 256;         // keys of which one warp finds the cut

constexpr int kNoLimit = INT32_MAX;
constexpr int kMany = 32;  // threads more than are needed

/// What may still be among the m best: every key above `key`, and equal ones with an index below
/// `limit`.
struct Bar {
    int key, limit;
    __device__ bool passes(int k, int index) const {
        return k > key || (k == key && index < limit);
    }
    /// Of entries from index `first` on all that pass are above this key.
    __device__ int below(int first) const { return first >= limit ? key : key - 1; }
};

/// Tells which of a tile's words hold an entry above the key `below`; first, by one or two
/// instructions an entry, whether any does, and it may say so of none. Numbers are compared as such
/// in float32, where |x| is free and subnormals count; as integers, two in a word, in half types.
template <class Bits, bool POSITIVE>
struct Sieve;

template <bool POSITIVE>
struct Sieve<uint32_t, POSITIVE> {
    float bar;

    /// Every entry is above a negative key: as of a NaN nothing is <= it. inf is the highest bar.
    __device__ Sieve(int below, int nan)
        : bar(F32::value(below < 0 ? 0x7fffffff : min(below, nan - 1))) {}

    static __device__ bool above(uint32_t word, float bar) {
        const float x = F32::value(word);
        return !((POSITIVE ? x : fabsf(x)) <= bar);
    }
    __device__ bool any(const uint32_t (&word)[kWords]) const {
        bool found = false;
#pragma unroll
        for (int w = 0; w < kWords; ++w) found |= above(word[w], bar);
        return found;
    }
    /// Bit w: whether word w does.
    __device__ unsigned hits(const uint32_t (&word)[kWords]) const {
        // Else what any() compared is kept, in more predicates than there are.
        float same = bar;
        asm("" : "+f"(same));
        unsigned mask = 0;
#pragma unroll
        for (int w = 0; w < kWords; ++w) mask |= unsigned(above(word[w], same)) << w;
        return mask;
    }
    /// The largest key of the words [first, last).
    static __device__ int largest(const uint32_t (&word)[kWords], int first, int last, int nan) {
        int most = 0;
#pragma unroll
        for (int w = first; w < last; ++w)
            most = max(most, int(selectable<POSITIVE>(word[w], nan) & 0x7fffffffu));
        return min(most, nan);
    }
};

template <bool POSITIVE>
struct Sieve<uint16_t, POSITIVE> {
    static constexpr uint32_t kSigns = 0x80008000u, kOnes = 0x00010001u;
    // Added to a key, which is below 0x8000, they set the sign of one that is above, and of a NaN.
    uint32_t above, is_nan;
    bool all;

    __device__ Sieve(int below, int nan)
        : above(kSigns - uint32_t(below + 1) * kOnes),
          is_nan(kSigns - uint32_t(nan) * kOnes),
          all(below < 0) {}

    /// Of u, or |u|, in both halves: a modifier of what reads it.
    static __device__ uint32_t size(uint32_t word) {
        if constexpr (!POSITIVE) asm("abs.f16x2 %0, %0;" : "+r"(word));
        return word;
    }
    static __device__ uint32_t larger(uint32_t a, uint32_t b) {
        asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
        return a;
    }

    /// One instruction two entries: the larger of both halves, as float16 whatever they are, of
    /// which NaN is the largest, of any sign. Other numbers are ordered as their bits are, so that
    /// those of bfloat16 are, too, but for 2^121 and more, which may be NaN as float16: above any
    /// bar.
    __device__ bool any(const uint32_t (&word)[kWords]) const {
        uint32_t most = size(word[0]);
#pragma unroll
        for (int w = 1; w < kWords; ++w) most = larger(most, size(word[w]));
        // A sign may stand in it: what a low half carries into the high one makes a key 1 larger.
        const uint32_t sum = most + above;
        const uint32_t found = POSITIVE ? (sum & ~most) | ((most + is_nan) ^ most) : sum ^ most;
        return all || (found & kSigns) != 0;
    }
    /// Bit w: the low half of word w; bit 16 + w: its high half.
    __device__ unsigned hits(const uint32_t (&word)[kWords]) const {
        unsigned mask = 0;
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
            const uint32_t keys = word[w] & ~kSigns;
            uint32_t found = keys + above;
            if (POSITIVE) found &= ~word[w] | (keys + is_nan);
            mask = (mask >> 1) | (found & kSigns);
        }
        return all ? ~0u : mask;
    }
    static __device__ int largest(const uint32_t (&word)[kWords], int first, int last, int nan) {
        uint32_t high = 0, low = 0;  // in the upper halves
#pragma unroll
        for (int w = first; w < last; ++w) {
            uint32_t keys = word[w] & ~kSigns;
            if (POSITIVE) {
                const uint32_t zero = word[w] & ~(keys + kSigns - uint32_t(nan) * kOnes) & kSigns;
                keys &= ~(zero - (zero >> 15));  // of negative numbers
            }
            high = max(high, keys);
            low = max(low, keys << 16);
        }
        return min(int(max(high, low) >> 16), nan);
    }
};

/// A row or a segment, walked by tiles of packs of 16 bytes at their alignment: the first pack may
/// begin `lead` entries before the row, which are not read.
template <class Bits>
struct Row {
    static constexpr int kPack = 16 / sizeof(Bits), kItems = kPack * kLoads;
    static constexpr int kTile = kThreads * kItems;
    static constexpr int kEach = 4 / sizeof(Bits);  // entries of a word

    const Bits* from;
    int size;
    int first;       // of this thread, in tile 0
    int whole, all;  // tiles, but that the first is not whole at another alignment

    __device__ Row(const Bits* from, int size) : from(from), size(size) {
        const int lead = int(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(Bits));
        first = int(threadIdx.x) * kPack - lead;
        whole = (lead + size) / kTile;
        all = (lead + size + kTile - 1) / kTile;
    }

    __device__ bool aligned() const { return reinterpret_cast<uintptr_t>(from) % 16 == 0; }
    /// The index of the first entry of this thread's pack k of a tile; it may be outside of the
    /// row.
    __device__ int index(int tile, int k) const {
        return first + tile * kTile + k * (kThreads * kPack);
    }
    /// This thread's words of a whole tile, whose first pack is at `at`.
    static __device__ void load(const Bits* at, uint32_t (&word)[kWords]) {
#pragma unroll
        for (int k = 0; k < kLoads; ++k) load_pack(at + k * (kThreads * kPack), &word[4 * k]);
    }
    /// This thread's words of any tile; 0 where there is no entry.
    __device__ void load_some(int tile, uint32_t (&word)[kWords]) const {
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
            const int i = index(tile, k);
            if (i >= 0 && i + kPack <= size) {
                load_pack(from + i, &word[4 * k]);
                continue;
            }
#pragma unroll
            for (int w = 0; w < 4; ++w) word[4 * k + w] = 0;
            if (i >= size) continue;
#pragma unroll
            for (int w = 0; w < 4; ++w) {
#pragma unroll
                for (int v = 0; v < kEach; ++v) {
                    const int j = i + w * kEach + v;
                    if (j >= 0 && j < size)
                        word[4 * k + w] |= uint32_t(from[j]) << (v * 8 * int(sizeof(Bits)) % 32);
                }
            }
        }
    }
    static __device__ void load_pack(const Bits* at, uint32_t* word) {
        const uint4 pack = *reinterpret_cast<const uint4*>(at);
        word[0] = pack.x;
        word[1] = pack.y;
        word[2] = pack.z;
        word[3] = pack.w;
    }
};

/// word[first + i], i < COUNT, of registers: a tree of selections.
template <int COUNT = kWords>
__device__ uint32_t word_of(const uint32_t (&word)[kWords], unsigned i, int first = 0) {
    if constexpr (COUNT == 1) {
        return word[first];
    } else {
        const uint32_t low = word_of<COUNT / 2>(word, i, first);
        const uint32_t high = word_of<COUNT / 2>(word, i, first + COUNT / 2);
        return (i & (COUNT / 2)) != 0 ? high : low;
    }
}

/// The cut of m of n keys, 0 < m <= n. All threads; begins after a barrier, and a barrier must
/// follow before the next.
template <int BITS, class KeyAt>
__device__ Cut cut_of(BlockSelect& s, int n, int m, KeyAt key_at) {
    if (n > kSmall) {
        const auto keys = [&](int i, int (&key)[kTogether]) {
#pragma unroll
            for (int v = 0; v < kTogether; ++v) key[v] = i + v < n ? key_at(i + v) : kPadding;
        };
        return block_cut<BITS>(s, keys, n, m);
    }
    if (warp_id() == 0) {
        int key[kSmall / 32];
#pragma unroll
        for (int k = 0; k < kSmall / 32; ++k) {
            const int i = k * 32 + lane_id();
            key[k] = i < n ? key_at(i) : kPadding;
        }
        const Cut cut = warp_cut(key, n, m);
        if (lane_id() == 0) {
            s.digit = cut.key;
            s.above = cut.ties;
        }
    }
    __syncthreads();
    return {s.digit, s.above};
}

/// What has reached the bar, in no order, and then a bitmap of what is kept.
template <class Bits>
struct Collected {
    int* place;
    Bits* bits;
    int* count;  // may pass `room`, by entries that found none
    int* left;
    int room;

    __device__ int size() const { return min(*count, room); }
};

/// The m best of n > m collected entries: the bar that exactly they pass.
template <class Bits>
__device__ Bar best_of(BlockSelect& s, const Collected<Bits>& c, int n, int m, KeyOf<Bits> key_of) {
    const Cut cut = cut_of<KeyOf<Bits>::kBits>(s, n, m, [&](int i) { return key_of(c.bits[i]); });
    if (cut.ties == 0) return {cut.key, 0};
    __syncthreads();
    constexpr int kLast = kNoLimit - 1;  // a cut adds 1 to the largest key
    const Cut first = cut_of<31>(s, n, cut.ties, [&](int i) {
        return key_of(c.bits[i]) == cut.key ? kLast - c.place[i] : kPadding;
    });
    return {cut.key, kLast - first.key + (first.ties > 0)};
}

/// Leaves what passes the bar, m of n > m. Others may be added at once.
template <class Bits>
__device__ void compact(const Collected<Bits>& c, int n, int m, Bar bar, KeyOf<Bits> key_of) {
    if (threadIdx.x == 0) {
        *c.left = 0;
        *c.count = m;
    }
#pragma unroll 1
    for (int first = 0; first < n; first += kThreads) {
        const int i = first + int(threadIdx.x);
        bool keep = false;
        Bits b = 0;
        int at = 0;
        if (i < n) {
            b = c.bits[i];
            at = c.place[i];
            keep = bar.passes(key_of(b), at);
        }
        __syncthreads();  // what is kept moves into places that were read
        if (keep) {
            const int to = atomicAdd(c.left, 1);
            c.bits[to] = b;
            c.place[to] = at;
        }
    }
}

}  // namespace

template <class Bits, bool DENSE, bool POSITIVE>
__global__ void __launch_bounds__(kThreads, kBlocks)
    top_m_once_kernel(const Bits* u, int64_t u_stride, int p, int segment, int segments, int m,
                      int room, int nan, Bits* values, int64_t* indices, int64_t out_stride,
                      uint8_t* mask, const int64_t* map) {
    __shared__ BlockSelect select;
    __shared__ int count, left;
    extern __shared__ uint4 memory[];
    const int64_t number = blockIdx.x / segments;
    const int part = int(blockIdx.x % segments), begin = part * segment;
    const Row<Bits> row(u + number * u_stride + begin, min(segment, p - begin));
    const KeyOf<Bits> key_of{nan};
    const int thread = int(threadIdx.x), tiles = row.all;
    auto* bitmap = reinterpret_cast<uint32_t*>(memory);
    const int groups = (row.size + 127) / 128;  // of four words
    auto* before = reinterpret_cast<int*>(bitmap + 4 * groups);
    auto* place = before + (DENSE ? 0 : (groups + 3) / 4 * 4);
    const Collected<Bits> c{place, reinterpret_cast<Bits*>(place + room), &count, &left, room};

    uint32_t word[kWords];
    if (row.aligned() && row.whole > 0)
        row.load(row.from + row.first, word);
    else
        row.load_some(0, word);
#pragma unroll 1
    for (int i = thread; i < groups; i += kThreads) memory[i] = make_uint4(0, 0, 0, 0);
    if (thread == 0) count = 0;
    Bar bar{kPadding, 0};
    // Disjoint groups of the first tile: m of them have an entry that reaches their m-th maximum.
    constexpr int kMaxima = kThreads * kLoads;
    if (m <= kThreads / 4) {
        place[thread] = Sieve<Bits, POSITIVE>::largest(word, 0, kWords, nan);
    } else if (m <= kMaxima / 2) {
#pragma unroll
        for (int k = 0; k < kLoads; ++k)
            place[k * kThreads + thread] =
                Sieve<Bits, POSITIVE>::largest(word, 4 * k, 4 * k + 4, nan);
    }
    __syncthreads();
    if (m <= kMaxima / 2) {
        const int n = m <= kThreads / 4 ? kThreads : kMaxima;
        const Cut cut = cut_of<KeyOf<Bits>::kBits>(select, n, m, [&](int i) { return place[i]; });
        bar = {cut.key, cut.ties > 0 ? kNoLimit : 0};
    }

    // Of the tile before `tile`, the entries that are yet to be collected.
    unsigned hits = Sieve<Bits, POSITIVE>(bar.below(0), nan).hits(word);
    int tile = 1, n = 0;
    const auto index_of = [&](unsigned bit) {
        const unsigned w = bit % kWords;
        return row.index(tile - 1, w / 4) + int(w % 4 * Row<Bits>::kEach + bit / kWords);
    };
    // Where far more threads have such an entry than are needed, as of zeros, the first m of those
    // entries do, and of equal ones none after the last of these.
    if (bar.limit == kNoLimit && m <= kThreads - kMany) {
        const int first = hits != 0 ? index_of(__ffs(int(hits)) - 1) : -1;
        const bool found = first >= 0 && first < row.size;
        if (__syncthreads_count(found) >= m + kMany) {
            constexpr int kLast = kNoLimit - 1;
            place[thread] = found ? kLast - first : kPadding;
            __syncthreads();
            const Cut cut = cut_of<31>(select, kThreads, m, [&](int i) { return place[i]; });
            bar.limit = kLast - cut.key + (cut.ties > 0);
            hits = Sieve<Bits, POSITIVE>(bar.below(row.index(0, 0)), nan).hits(word);
        }
    }
    const auto collect = [&] {
#pragma unroll 1
        for (; hits != 0; hits &= hits - 1) {
            const unsigned bit = __ffs(int(hits)) - 1;
            const int i = index_of(bit);
            if (i < 0 || i >= row.size) continue;
            const Bits b =
                selectable<POSITIVE>(Bits(word_of(word, bit % kWords) >> (bit / kWords * 16)), nan);
            if (!bar.passes(key_of(b), i)) continue;
            const int to = atomicAdd(&count, 1);
            if (to >= room) break;
            c.bits[to] = b;
            place[to] = i;
        }
        return !__any_sync(kAllLanes, hits != 0);
    };
    for (int stop = min(tiles, 4);;) {
        if (collect()) {
            const Sieve<Bits, POSITIVE> sieve(bar.below(row.index(tile, 0)), nan);
            const Bits* at = row.from + row.index(tile, 0);
            while (tile < stop) {
                if (tile < row.whole)
                    row.load(at, word);
                else
                    row.load_some(tile, word);
                at += Row<Bits>::kTile;
                ++tile;
                if (!__any_sync(kAllLanes, sieve.any(word))) continue;
                hits = sieve.hits(word);
                if (!collect()) break;
            }
        }
        const bool full = __syncthreads_or(hits != 0);
        n = c.size();
        if (n > m) bar = best_of(select, c, n, m, key_of);
        if (!full && stop == tiles) break;
        if (n > m)
            compact(c, n, m, bar, key_of);
        else
            __syncthreads();  // n is the same for all
        if (!full) stop = min(tiles, 4 * stop);
    }

#pragma unroll 1
    for (int i = thread; i < n; i += kThreads) {
        const int key = key_of(c.bits[i]), at = place[i];
        if (bar.passes(key, at) && !(DENSE && POSITIVE && key == 0))
            atomicOr(&bitmap[at / 32], 1u << (at % 32));
    }
    __syncthreads();
    if constexpr (DENSE) {
        constexpr int V = 16 / sizeof(Bits);
        Bits* to = values + number * out_stride;
        const bool aligned = rows_aligned<Bits, V>(to, 0);
#pragma unroll 1
        for (int i = thread * V; i < row.size; i += kThreads * V)
            store_pack<V>(to, i, row.size, aligned, Pack<Bits, V>{});
        const auto* bytes = reinterpret_cast<const uint8_t*>(bitmap);
        uint8_t* mask_row = mask + number * ((p + 7) / 8);
#pragma unroll 1
        for (int b = thread; b < (row.size + 7) / 8; b += kThreads) mask_row[b] = bytes[b];
        __syncthreads();
#pragma unroll 1
        for (int i = thread; i < n; i += kThreads)
            if (bar.passes(key_of(c.bits[i]), place[i])) to[place[i]] = c.bits[i];
    } else {
        const int each = (groups + kThreads - 1) / kThreads, first = min(groups, thread * each);
        const int last = min(groups, first + each);
        const auto bits_of = [&](int g) {
            const uint4 w = memory[g];
            return __popc(w.x) + __popc(w.y) + __popc(w.z) + __popc(w.w);
        };
        int sum = 0;
#pragma unroll 1
        for (int g = first; g < last; ++g) sum += bits_of(g);
        sum = threads_before(select, sum);
#pragma unroll 1
        for (int g = first; g < last; ++g) {
            before[g] = sum;
            sum += bits_of(g);
        }
        __syncthreads();
        const int64_t out = number * out_stride + int64_t(part) * m;
#pragma unroll 1
        for (int i = thread; i < n; i += kThreads) {
            const Bits b = c.bits[i];
            const int at = place[i];
            if (!bar.passes(key_of(b), at)) continue;
            int rank = before[at / 128] + __popc(bitmap[at / 32] & ((1u << (at % 32)) - 1u));
#pragma unroll 1
            for (int w = at / 128 * 4; w < at / 32; ++w) rank += __popc(bitmap[w]);
            values[out + rank] = b;
            indices[out + rank] = map ? map[number * u_stride + begin + at] : begin + at;
        }
    }
}

namespace {

/// Entries that can be collected.
int64_t room_of(int64_t m) { return std::max<int64_t>(2048, ceil_div(4 * m, 1024) * 1024); }

template <class Bits, bool DENSE, bool POSITIVE>
void launch(const OnceTopM& a) {
    const char* name = "top_m_once_kernel";
    const auto kernel = top_m_once_kernel<Bits, DENSE, POSITIVE>;
    const int64_t segments = ceil_div(a.p, a.segment);
    const size_t shared = once_shared_bytes(sizeof(Bits), a.segment, a.m);
    allow_shared(kernel, shared, sizeof(BlockSelect) + 2 * sizeof(int), name);
    kernel<<<grid_size(a.rows * segments, name), kThreads, shared, a.stream>>>(
        static_cast<const Bits*>(a.u), a.u_stride, a.p, a.segment, int(segments), a.m,
        int(room_of(a.m)), a.nan, static_cast<Bits*>(a.values), a.indices, a.out_stride, a.mask,
        a.map);
    launched(name);
}

template <class Bits>
void launch(const OnceTopM& a) {
    if (a.mask)
        a.positive ? launch<Bits, true, true>(a) : launch<Bits, true, false>(a);
    else
        a.positive ? launch<Bits, false, true>(a) : launch<Bits, false, false>(a);
}

}  // namespace

size_t once_shared_bytes(size_t element, int64_t segment, int64_t m) {
    const int64_t groups = ceil_div(segment, 128);
    return size_t(groups * 16 + ceil_div(groups, 4) * 16) + size_t(room_of(m)) * (4 + element);
}

int64_t once_segment(size_t element, int64_t rows, int64_t p, int64_t m, const Device& device) {
    if (p <= (element == 4 ? 1024 : 2047)) return 0;
    constexpr int64_t kTileBytes = kThreads * kLoads * 16;
    // Tiles that a block streams while a second kernel is launched and merges: a guess, to be
    // measured.
    constexpr int64_t kMerge = 4;
    const int64_t tile = kTileBytes / int64_t(element);
    const auto whole = [&](int64_t entries) { return ceil_div(entries, tile) * tile; };
    const auto shared_bytes = [&](int64_t segment) {
        return int64_t(once_shared_bytes(element, segment, m) + sizeof(BlockSelect) + 16);
    };
    const int64_t least = whole((element == 4 ? 64 : 96) * m);
    int64_t segment = p;
    if (rows <= device.multiprocessors) {
        const int64_t fit = device.shared_bytes / shared_bytes(std::min(p, kMostOnce));
        const int64_t together = std::clamp<int64_t>(fit, 1, kBlocks) * device.multiprocessors;
        const int64_t part = ceil_div(p, together / rows);
        const auto candidates = int64_t(std::sqrt(double(p) * double(m)));  // segment^2 = p m
        const int64_t slice = std::max(whole(std::max(part, candidates)), least);
        if (p - slice >= kMerge * tile) segment = slice;
    }
    if (segment > kMostOnce) segment = std::max(whole(ceil_div(p, ceil_div(p, kMostOnce))), least);
    segment = std::min(segment, p);
    const bool fits = segment <= kMostOnce && 2 * shared_bytes(segment) <= device.shared_bytes;
    return fits && 32 * m <= segment ? segment : 0;
}

void top_m_once(const OnceTopM& a) { a.element == 4 ? launch<uint32_t>(a) : launch<uint16_t>(a); }

}  // namespace deepl0::cuda
