// State of a panel of rows that are being screened: the bound of each row and its candidates. For
// files that are compiled once per ISA level.
#pragma once

#include "screen_pack.h"
#include "select.h"

namespace deepl0::DEEPL0_ISA {

DEEPL0_INLINE I32 as_bits(F32 v) {
    I32 b;
    memcpy(&b, &v, sizeof b);
    return b;
}
DEEPL0_INLINE F32 as_floats(I32 v) {
    F32 f;
    memcpy(&f, &v, sizeof f);
    return f;
}
DEEPL0_INLINE int32_t bits_of(float v) { return bit_cast<int32_t>(v); }

struct Layout {
    int64_t panel;               // rows, a multiple of 32
    int64_t tile;                // units of the first tile, which gives the first bound
    int64_t capacity;            // candidates of a row
    int64_t stride;              // between the rows of candidates
    int64_t scratch, row_bytes;  // of int32, of a packed row
    int64_t added, blocks;       // entries of z, and their lists
    bool bf16, tiles;

    Layout(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m, int64_t z_m)
        : bf16(kind != ScreenKind::float32), tiles(kind == ScreenKind::bfloat16_tiles) {
        panel = smaller(round_up(larger(rows, 1), 32), 512);
        const int64_t units = round_up(larger(p, 1), kScreenGroup);
        tile = smaller(units, larger(1024, round_up(4 * m, kScreenGroup)));
        capacity = smaller(round_up(4 * m + 256, 16), units + 64);
        stride = capacity + kBlock + 16;
        scratch = cut_scratch(larger(tile, stride)) + 64;
        added = z_m > 0 ? panel * z_m : 0;
        blocks = z_m > 0 ? panel / 32 * (units / kScreenGroup) + 1 : 0;
        row_bytes = bf16 ? (n + 31) / 32 * 64 : n * 4;
    }
    int64_t bytes() const {
        const int64_t selected = capacity + 64;
        return 4 * (round_up(7 * panel, 16) + round_up(2 * added + blocks, 16) +
                    3 * panel * stride + round_up(scratch, 16) + 32 * tile + 3 * selected) +
               panel * row_bytes + 4096;
    }
};

/// Candidates of a row, units ascending. Screened: lo and hi are the bit patterns of bounds of |u|
/// (lo >= 0). Computed: lo is the key of u, hi its bit pattern.
struct Candidates {
    int32_t *lo, *hi, *unit;
};

/// z of a panel, as what is added to the blocks of approximations: that of row block b and group g
/// are the entries [start[b groups + g], start[b groups + g + 1]).
struct Added {
    int32_t* start;
    int32_t* at;  // position in the block [32, 32]
    float* value;
};

struct Panel {
    Layout layout;
    int64_t m;
    bool positive;
    const float* bias;  // of the packed units, or null
    Packed w;
    float *a, *c;  // coefficients of the bound
    float* floor;  // of the bound: what is added for the row
    float* least;  // lower bound of the m-th largest |u|; inf: the row takes no more candidates
    Added z;
    int32_t *count, *trigger;
    int32_t* full;  // rows to be computed throughout
    int64_t full_rows = 0;
    int32_t *candidates, *scratch;
    float* tile;
    float* values;
    int32_t* chosen;
    char* x;  // packed rows
    ScreenCounts counts;

    Panel(const ScreenProblem& q, int64_t rows, void* workspace)
        : layout(q.kind, rows, q.p, q.n, q.m, q.z_m),
          m(q.m),
          positive(q.positive),
          w(q.packed, layout.bf16, q.p, q.n) {
        bias = q.bias ? w.bias : nullptr;
        char* at = static_cast<char*>(workspace);
        const auto take = [&](int64_t bytes) {
            void* block = at;
            at += round_up(bytes, 64);
            return block;
        };
        const int64_t b = layout.panel;
        x = static_cast<char*>(take(b * layout.row_bytes));
        tile = static_cast<float*>(take(32 * layout.tile * 4));
        a = static_cast<float*>(take(b * 4));
        c = static_cast<float*>(take(b * 4));
        floor = static_cast<float*>(take(b * 4));
        least = static_cast<float*>(take(b * 4));
        z.start = static_cast<int32_t*>(take(layout.blocks * 4));
        z.at = static_cast<int32_t*>(take(layout.added * 4));
        z.value = static_cast<float*>(take(layout.added * 4));
        count = static_cast<int32_t*>(take(b * 4));
        trigger = static_cast<int32_t*>(take(b * 4));
        full = static_cast<int32_t*>(take(b * 4));
        scratch = static_cast<int32_t*>(take(layout.scratch * 4));
        values = static_cast<float*>(take((layout.capacity + 64) * 4));
        chosen = static_cast<int32_t*>(take((layout.capacity + 64) * 8));
        candidates = static_cast<int32_t*>(take(3 * b * layout.stride * 4));
    }
    Candidates of(int64_t r) const {
        int32_t* lo = candidates + 3 * r * layout.stride;
        return {lo, lo + layout.stride, lo + 2 * layout.stride};
    }
};

DEEPL0_INLINE F32 bound_of(const Panel& s, int64_t r, int64_t unit) {
    const float floor = s.floor[r] + s.w.group_slack[unit / kScreenGroup];
    const F32 e = fma(broadcast(s.a[r]), load(s.w.norm + unit), broadcast(floor));
    return fma(broadcast(s.c[r]), load(s.w.error + unit), e);
}

/// Of several units: their largest norm, error and slack.
struct Maxima {
    float norm = 0.0f, error = 0.0f, slack = 0.0f;
};

/// A bound for all of them.
DEEPL0_INLINE float bound_of(const Panel& s, int64_t r, const Maxima& units) {
    return s.a[r] * units.norm + s.c[r] * units.error + (s.floor[r] + units.slack);
}

/// The least that the bound of a row may be. Where codes are nonnegative, what is not > 0 need not
/// be a candidate (see write_with_zeros).
DEEPL0_INLINE float least_of_all(const Panel& s) {
    return s.positive ? bit_cast<float>(int32_t(1)) : 0.0f;
}

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

/// Row r takes no more candidates: the NaN makes every comparison fail, whatever its products are.
DEEPL0_INLINE void shut(Panel& s, int64_t r) {
    s.a[r] = __builtin_nanf("");
    s.least[r] = __builtin_inff();
    s.count[r] = 0;
}
DEEPL0_INLINE bool is_shut(const Panel& s, int64_t r) { return s.least[r] == __builtin_inff(); }

DEEPL0_INLINE void give_up(Panel& s, int64_t r) {
    s.full[s.full_rows++] = int32_t(r);
    shut(s, r);
}

/// A lower bound of the m-th largest key, close to it: exactness would gain a candidate in a
/// hundred. keys have room for a block of padding.
DEEPL0_INLINE int32_t coarse_cut(int32_t* keys, int64_t n, int64_t m, Bracket b) {
    pad_block(keys, n);
    for (int step = 0; step < 6 && open(b, m); ++step) narrow<0>(b, keys, n, m, quarters(b));
    return b.lo;
}

/// Raises the bound of a screened row to its m-th largest lo and drops what falls below.
DEEPL0_NOINLINE void compact(Panel& s, int64_t r) {
    const int64_t n = s.count[r];
    if (n > s.m) {
        const Candidates at = s.of(r);
        // At least m candidates are >= least, up to the rounding of the first bound: then the
        // search ends at least itself.
        const Bracket b{bits_of(s.least[r]), largest(at.lo, n) + 1, n, 0};
        const int32_t cut = coarse_cut(at.lo, n, s.m, b);
        s.least[r] = bit_cast<float>(cut);
        const I32 bound = broadcast(cut);
        filter(s, r, [&](I32, I32 hi) { return ge(hi, bound); });
        if (s.count[r] > s.layout.capacity - 64) {
            give_up(s, r);
            return;
        }
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

DEEPL0_INLINE Maxima maxima(const Packed& w, int64_t begin_group, int64_t end_group) {
    Maxima most;
    for (int64_t g = begin_group; g < end_group; ++g) {
        most.norm = w.group_norm[g] > most.norm ? w.group_norm[g] : most.norm;
        most.error = w.group_error[g] > most.error ? w.group_error[g] : most.error;
        most.slack = w.group_slack[g] > most.slack ? w.group_slack[g] : most.slack;
    }
    return most;
}

}  // namespace deepl0::DEEPL0_ISA
