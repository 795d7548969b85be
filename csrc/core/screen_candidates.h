// The candidates of a row: what may be among its m largest, found in approximations. For files that
// are compiled once per ISA level.
#pragma once

#include "screen_exact.h"

namespace deepl0::DEEPL0_ISA {

/// Appends what may belong to the m largest, among the units [unit, unit + kLanes).
template <bool Positive>
DEEPL0_INLINE void push(Panel& s, int64_t r, F32 u, int64_t unit) {
    const Candidates to = s.of(r);
    const int32_t n = s.count[r];
    const F32 e = bound_of(s, r, unit), size = Positive ? u : abs(u);
    const I32 inf = broadcast(int32_t(0x7f800000));
    const Mask known = gt(inf, as_bits(e));
    I32 hi = as_bits(size + e);
    if (Positive)
        hi =
            add(as_bits(keep(known, size + e)), as_bits(keep(ge(as_bits(e), inf), as_floats(inf))));
    const I32 lo = max(as_bits(keep(known, size - e)), broadcast(int32_t(0)));
    const Mask in = ge(hi, broadcast(bits_of(s.least[r])));
    compress(to.lo + n, in, lo);
    compress(to.hi + n, in, hi);
    compress(to.unit + n, in, add(iota(), broadcast(int32_t(unit))));
    s.count[r] = n + count(in);
}

DEEPL0_INLINE int32_t largest(const int32_t* keys, int64_t n) {
    I32 top = broadcast(int32_t(0));
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) top = max(top, load(keys + i));
    if (i < n) top = max(top, load_first(keys + i, int(n - i)));
    return reduce_max(top);
}

/// Keys may be overwritten when there are many.
DEEPL0_INLINE int32_t* searchable(Panel& s, int32_t* keys, int64_t n) {
    if (n <= 4 * kBlock) return keys;
    memcpy(s.scratch, keys, size_t(n) * 4);
    return s.scratch;
}

/// Keeps the candidates of row r for which keep(lo, hi) holds, in their order.
template <class Keep>
DEEPL0_INLINE void filter(Panel& s, int64_t r, Keep keep_lanes) {
    const Candidates at = s.of(r);
    const int64_t n = s.count[r];
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
        const I32 lo = load(at.lo + i), hi = load(at.hi + i), unit = load(at.unit + i);
        const Mask in = mask_and(keep_lanes(lo, hi), first(int(smaller(n - i, kLanes))));
        compress(at.lo + kept, in, lo);
        compress(at.hi + kept, in, hi);
        compress(at.unit + kept, in, unit);
        kept += count(in);
    }
    s.count[r] = int32_t(kept);
}

DEEPL0_INLINE void set_trigger(Panel& s, int64_t r) {
    const int64_t more = larger(s.m / 2, 48);
    s.trigger[r] = int32_t(smaller(s.count[r] + more, s.layout.capacity - 32));
}

/// A lower bound of the m-th largest key, close to it: exactness would gain a candidate in a
/// hundred. keys have room for a block of padding.
DEEPL0_INLINE int32_t coarse_cut(int32_t* keys, int64_t n, int64_t m, Bracket b) {
    pad_block(keys, n);
    for (int step = 0; step < 6 && open(b, m); ++step) narrow<0>(b, keys, n, m, quarters(b));
    return b.lo;
}

/// Raises the bound of a screened row to its m-th largest lo and drops what falls below.
DEEPL0_INLINE void raise(Panel& s, int64_t r) {
    const int64_t n = s.count[r];
    const Candidates at = s.of(r);
    // At least m candidates are >= least, up to the rounding of the first bound: then the
    // search ends at least itself.
    const Bracket b{bits_of(s.least[r]), largest(at.lo, n) + 1, n, 0};
    const int32_t cut = coarse_cut(at.lo, n, s.m, b);
    s.least[r] = bit_cast<float>(cut);
    filter(s, r, [&](I32, I32 hi) { return ge(hi, broadcast(cut)); });
}

/// The same after the best candidates have been computed, which then have exact bounds.
DEEPL0_NOINLINE void raise_by_computing(Panel& s, int64_t r) {
    const Chosen best = compute_best(s, r);
    const Candidates at = s.of(r);
    for (int64_t i = 0; i < best.n; ++i) {
        const int32_t k = bits_of(best.u[i]) & 0x7fffffff;
        if (k < kInfKey) at.lo[best.at[i]] = at.hi[best.at[i]] = k;
    }
    const int32_t least = bits_of(s.least[r]);
    filter(s, r, [&](I32, I32 hi) { return ge(hi, broadcast(least)); });
}

/// Makes room for candidates; where there are too many even so, the row is given up.
DEEPL0_NOINLINE void compact(Panel& s, int64_t r) {
    const int64_t most = s.layout.capacity - 64;
    if (s.count[r] > s.m) raise(s, r);
    if (s.count[r] > most) raise_by_computing(s, r);
    if (s.count[r] > most) {
        give_up(s, r);
        return;
    }
    set_trigger(s, r);
}

/// False if this was too much for the row.
template <bool Positive>
DEEPL0_INLINE bool push_and_compact(Panel& s, int64_t r, F32 u, int64_t unit) {
    push<Positive>(s, r, u, unit);
    if (__builtin_expect(s.count[r] <= s.trigger[r], 1)) return true;
    compact(s, r);
    return !is_shut(s, r);
}

/// One row of approximations of the units [unit, unit + width), unit a multiple of kLanes; u is
/// readable up to a multiple of kLanes. most: of all these units.
template <bool Positive>
DEEPL0_INLINE void scan_row(Panel& s, int64_t r, const float* u, int64_t unit, int64_t width,
                            const Maxima& most) {
    if (is_shut(s, r)) return;
    // The smallest approximation that may belong to an entry >= least.
    const float t = s.least[r] - bound_of(s, r, most);
    const I32 bound = broadcast(t > 0.0f ? bits_of(t) : 0);
    const auto hit = [&](F32 x) {
        return Positive ? not_less(x, broadcast(t)) : ge(key(x), bound);
    };
    int64_t i = 0;
    for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
        const F32 x0 = load(u + i), x1 = load(u + i + kLanes);
        const F32 x2 = load(u + i + 2 * kLanes), x3 = load(u + i + 3 * kLanes);
        const Mask hits = Positive ? mask_or(mask_or(hit(x0), hit(x1)), mask_or(hit(x2), hit(x3)))
                                   : ge(max(max(key(x0), key(x1)), max(key(x2), key(x3))), bound);
        if (!any(hits)) continue;
        for (int v = 0; v < 4; ++v) {
            const F32 x = load(u + i + v * kLanes);
            if (any(hit(x)) && !push_and_compact<Positive>(s, r, x, unit + i + v * kLanes)) return;
        }
    }
    for (; i < width; i += kLanes) {
        const F32 x = load_first(u + i, int(smaller(width - i, kLanes)));
        if (any(hit(x)) && !push_and_compact<Positive>(s, r, x, unit + i)) return;
    }
}

/// The first bound of a row, from the approximations of its first units.
template <bool Positive>
DEEPL0_INLINE void first_bound(Panel& s, int64_t r, const float* u, int64_t width,
                               const Maxima& most) {
    if (is_shut(s, r) || s.m >= width) return;
    const int32_t at_least = s.m <= kMaxGrouped
                                 ? candidate_bound<Positive>(u, width, s.m, s.scratch).lo
                                 : find_cut<Positive>(u, width, s.m, s.scratch).key;
    const float least = bit_cast<float>(at_least) - bound_of(s, r, most);
    s.least[r] = least > least_of_all(s) ? least : least_of_all(s);  // NaN: the latter
}

}  // namespace deepl0::DEEPL0_ISA
