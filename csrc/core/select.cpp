// Three steps. (1) A lower bound of the m-th largest key: the row is dealt into G >= m groups (lane
// maxima, one max per vector), and the m-th largest group maximum bounds the m-th largest key from
// below, since m groups have an entry at least that large. A coarse search is enough here. (2) The
// candidates above the bound, about 1.5 m of them, are compressed into scratch. (3) A 4-ary search
// over the integer keys counts the candidates until a threshold has exactly m above it, or until
// the interval closes on a value that is tied. Per entry of the row this costs one max, one compare
// and one compress; the search works on a few registers.
#include "select.h"

namespace deepl0 {
namespace DEEPL0_ISA {
namespace {

/// For candidates above a group bound: the tail thins out towards the maximum, so the m-th of 1.5 m
/// candidates lies in the lowest part of the interval.
DEEPL0_INLINE Thresholds low_part(const Bracket& b) {
    const int32_t w = b.hi - b.lo;
    return {{b.lo + w / 16 + 1, b.lo + w / 8 + 1, b.lo + w / 4 + 1}};
}

DEEPL0_INLINE Cut closed(const Bracket& b, int64_t m) {
    return {b.lo, b.at_lo == m ? -1 : m - b.at_hi};
}

template <int N>
DEEPL0_INLINE Cut search_few(const int32_t* keys, int64_t n, int64_t m, Bracket b) {
    if (open(b, m) && b.hi - b.lo > 4) narrow<N>(b, keys, n, m, low_part(b));
    while (open(b, m)) narrow<N>(b, keys, n, m, quarters(b));
    return closed(b, m);
}

/// Many keys: what falls out of the bracket is dropped on the way, so keys[] is overwritten.
DEEPL0_NOINLINE Cut search_many(int32_t* keys, int64_t n, int64_t m, Bracket b) {
    // First thresholds from the rank of m in a sample, which leaves a small part of the keys.
    constexpr int kSample = 2 * kBlock;
    alignas(64) int32_t sample[kSample];
    const int64_t stride = n / (kSample / kLanes);
    I32 lo = broadcast(kNanKey), hi = broadcast(int32_t(0));
    for (int v = 0; v < kSample / kLanes; ++v) {
        const I32 k = load(keys + v * stride);
        store(sample + v * kLanes, k);
        lo = min(lo, k);
        hi = max(hi, k);
    }
    const int64_t rank = m * kSample / n + 1;
    Bracket s{reduce_min(lo), reduce_max(hi) + 1, kSample, 0};
    for (int step = 0; step < 4 && open(s, rank); ++step) {
        narrow<kSample>(s, sample, kSample, rank, quarters(s));
    }
    const int64_t w = s.hi - s.lo;
    const auto inside = [&](int64_t t) {
        return t <= b.lo ? b.lo + 1 : t > b.hi ? b.hi : int32_t(t);
    };
    Thresholds at{{inside(s.lo - 2 * w), inside(s.lo + w / 2), inside(s.hi + 2 * w)}};
    while (open(b, m)) {
        narrow<0>(b, keys, n, m, at);
        if (n > 4 * kBlock && b.at_lo - b.at_hi <= n / 2) {
            int64_t kept = 0;
            for (int64_t i = 0; i < n; i += kLanes) {
                const I32 k = load(keys + i);
                const Mask in = mask_and(ge(k, broadcast(b.lo)), gt(broadcast(b.hi), k));
                compress(keys + kept, in, k);
                kept += count(in);
            }
            pad_block(keys, kept);
            n = kept;
            m -= b.at_hi;
            b.at_lo -= b.at_hi;
            b.at_hi = 0;
        }
        at = quarters(b);
    }
    return closed(b, m);
}

/// A lower bound of the m-th largest key, from G > m groups.
template <bool Positive, int G>
DEEPL0_INLINE Bracket group_bound(const float* u, int64_t p, int64_t m, int32_t* scratch) {
    constexpr int kVectors = G / kLanes;
    I32 top[kVectors];
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) top[v] = broadcast(int32_t(0));
    int64_t i = 0;
    for (; i + G <= p; i += G) {
#pragma GCC unroll 32
        for (int v = 0; v < kVectors; ++v)
            top[v] = max(top[v], key_of<Positive>(load(u + i + v * kLanes)));
    }
#pragma GCC unroll 32  // top[] stays in registers
    for (int v = 0; v < kVectors; ++v) {
        const int64_t left = p - i - v * kLanes;
        if (left <= 0) break;
        const F32 x = load_first(u + i + v * kLanes, int(left < kLanes ? left : kLanes));
        top[v] = max(top[v], key_of<Positive>(x));
    }
    I32 lo = broadcast(kNanKey), hi = broadcast(int32_t(0));
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) {
        const I32 k = clamp_nan(top[v]);
        store(scratch + v * kLanes, k);
        lo = min(lo, k);
        hi = max(hi, k);
    }
    const int32_t end = reduce_max(hi) + 1;
    Bracket b{reduce_min(lo), end, G, 0};
    for (int step = 0; step < 2; ++step) narrow<G>(b, scratch, G, m, quarters(b));
    return {b.lo, end, 0, 0};
}

/// idx[0..m) and val[0..m) from the whole row.
template <bool Positive, bool Ties>
DEEPL0_INLINE void write_from_row(const float* u, int64_t p, const Cut& cut, int32_t* idx,
                                  float* val) {
    Keeper<Ties> keeper(cut);
    I32 at = iota();
    int64_t n = 0, i = 0;
    for (; i + kLanes <= p; i += kLanes) {
        const F32 v = candidate<Positive>(load(u + i));
        const Mask kept = keeper(key(v));
        compress(idx + n, kept, at);
        compress(val + n, kept, v);
        n += count(kept);
        at = add(at, broadcast(int32_t(kLanes)));
    }
    if (i < p) {
        const F32 v = candidate<Positive>(load_first(u + i, int(p - i)));
        const Mask kept = mask_and(keeper(key(v)), first(int(p - i)));
        compress(idx + n, kept, at);
        compress(val + n, kept, v);
    }
}

template <bool Positive>
DEEPL0_NOINLINE void write_row(const float* u, int64_t p, Cut cut, int32_t* idx, float* val) {
    if (cut.ties < 0)
        write_from_row<Positive, false>(u, p, cut, idx, val);
    else
        write_from_row<Positive, true>(u, p, cut, idx, val);
}

/// idx[0..m) out of n <= 4 kBlock candidates.
template <bool Ties>
DEEPL0_INLINE void keep_candidates(const int32_t* keys, const int32_t* candidates, int64_t n,
                                   const Cut& cut, int32_t* idx) {
    Keeper<Ties> keeper(cut);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
        const Mask keep_lane = keeper(load(keys + i));  // padding has key -1
        compress(idx + kept, keep_lane, load(candidates + i));
        kept += count(keep_lane);
    }
}

/// Positions and keys of the entries with key >= lo; returns how many. Compressing the keys too
/// costs more per vector of the row, gathering them more per candidate, and its latency.
template <bool Positive, bool Gather>
DEEPL0_INLINE int64_t collect(const float* u, int64_t p, int32_t lo, int32_t* keys,
                              int32_t* candidates) {
    const I32 bound = broadcast(lo);
    I32 at = iota();
    int64_t n = 0, i = 0;
    for (; i + kLanes <= p; i += kLanes) {
        const I32 k = key_of<Positive>(load(u + i));
        const Mask above = ge(k, bound);
        compress(candidates + n, above, at);
        if (!Gather) compress(keys + n, above, clamp_nan(k));
        n += count(above);
        at = add(at, broadcast(int32_t(kLanes)));
    }
    if (i < p) {
        const I32 k = key_of<Positive>(load_first(u + i, int(p - i)));
        const Mask above = mask_and(ge(k, bound), first(int(p - i)));
        compress(candidates + n, above, at);
        if (!Gather) compress(keys + n, above, clamp_nan(k));
        n += count(above);
    }
    if (Gather) {
        store(candidates + n, broadcast(int32_t(0)));  // what follows the last must be a position
        for (int64_t c = 0; c < n; c += kLanes) {
            store(keys + c, clamp_nan(key_of<Positive>(gather(u, load(candidates + c)))));
        }
    }
    return n;
}

DEEPL0_INLINE Cut search_here(int32_t* keys, int64_t n, int64_t m, Bracket b) {
    pad_block(keys, n);
    if (n <= kBlock) return search_few<kBlock>(keys, n, m, b);
    if (n <= 4 * kBlock) return search_few<0>(keys, n, m, b);
    return search_many(keys, n, m, b);
}

template <bool Positive>
DEEPL0_INLINE Bracket bound_of(const float* u, int64_t p, int64_t m, int32_t* scratch) {
    if (m <= 20) return group_bound<Positive, 32>(u, p, m, scratch);
    if (m <= 40) return group_bound<Positive, 64>(u, p, m, scratch);
    if (m <= 100) return group_bound<Positive, 128>(u, p, m, scratch);
    if (m <= kMaxGrouped) return group_bound<Positive, 256>(u, p, m, scratch);
    return {0, kNanKey + 1, 0, 0};
}

}  // namespace

Cut search(int32_t* keys, int64_t n, int64_t m, Bracket b) { return search_here(keys, n, m, b); }

template <bool Positive>
Bracket candidate_bound(const float* u, int64_t p, int64_t m, int32_t* scratch) {
    return bound_of<Positive>(u, p, m, scratch);
}

template <bool Positive>
Cut find_cut(const float* u, int64_t p, int64_t m, int32_t* scratch) {
    if (m <= 0) return {kNanKey, 0};
    if (m >= p) return {0, -1};
    Bracket b = bound_of<Positive>(u, p, m, scratch);
    const I32 bound = broadcast(b.lo);
    int64_t n = 0, i = 0;
    for (; i + kLanes <= p; i += kLanes) {
        const I32 k = key_of<Positive>(load(u + i));
        const Mask above = ge(k, bound);
        compress(scratch + n, above, clamp_nan(k));
        n += count(above);
    }
    if (i < p) {
        const I32 k = key_of<Positive>(load_first(u + i, int(p - i)));
        const Mask above = mask_and(ge(k, bound), first(int(p - i)));
        compress(scratch + n, above, clamp_nan(k));
        n += count(above);
    }
    b.at_lo = n;
    return search_here(scratch, n, m, b);
}

template <bool Positive>
void select_top_m(const float* u, int64_t p, int64_t m, int32_t* scratch, int32_t* idx,
                  float* val) {
    if (m <= 0 || m >= p || m > kMaxGrouped) {
        write_row<Positive>(u, p, find_cut<Positive>(u, p, m, scratch), idx, val);
        return;
    }
    int32_t* keys = scratch;
    int32_t* candidates = scratch + cut_scratch(p) / 2;
    Bracket b = bound_of<Positive>(u, p, m, scratch);
    const int64_t n = p > 512 ? collect<Positive, true>(u, p, b.lo, keys, candidates)
                              : collect<Positive, false>(u, p, b.lo, keys, candidates);
    b.at_lo = n;
    const Cut cut = search_here(keys, n, m, b);
    if (__builtin_expect(n > 4 * kBlock, 0)) {  // the search has consumed the keys
        write_row<Positive>(u, p, cut, idx, val);
        return;
    }
    if (__builtin_expect(cut.ties < 0, 1))
        keep_candidates<false>(keys, candidates, n, cut, idx);
    else
        keep_candidates<true>(keys, candidates, n, cut, idx);
    store(idx + m, broadcast(int32_t(0)));
    for (int64_t c = 0; c < m; c += kLanes)
        store(val + c, candidate<Positive>(gather(u, load(idx + c))));
}

#define DEEPL0_SELECT(Positive)                                                              \
    template Bracket candidate_bound<Positive>(const float*, int64_t, int64_t, int32_t*);    \
    template Cut find_cut<Positive>(const float*, int64_t, int64_t, int32_t*);               \
    template void select_top_m<Positive>(const float*, int64_t, int64_t, int32_t*, int32_t*, \
                                         float*);
DEEPL0_SELECT(false)
DEEPL0_SELECT(true)

}  // namespace DEEPL0_ISA
}  // namespace deepl0
