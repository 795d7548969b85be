// State of a panel of rows that are being screened: packed rows, bounds, room for candidates. For
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

    Layout(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m, int64_t z_m) {
        panel = smaller(round_up(larger(rows, 1), 32), 512);
        const int64_t units = round_up(larger(p, 1), kScreenGroup);
        tile = smaller(units, larger(1024, round_up(4 * m, kScreenGroup)));
        capacity = smaller(round_up(4 * m + 256, 16), units + 64);
        stride = capacity + kBlock + 16;
        scratch = cut_scratch(larger(tile, stride)) + 64;
        added = z_m > 0 ? panel * z_m : 0;
        blocks = z_m > 0 ? panel / 32 * (units / kScreenGroup) + 1 : 0;
        row_bytes = bytes_of_row(kind, n);
    }
    int64_t bytes() const {
        const int64_t selected = capacity + 64;
        return 4 * (round_up(11 * panel, 16) + round_up(2 * added + blocks, 16) +
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
    const ScreenProblem& q;
    int64_t begin = 0;  // row of the problem that is row 0 of the panel
    int64_t rows = 0;   // of the panel; a block may leave the others out
    Layout layout;
    int64_t m;
    bool positive;
    const float* bias;  // of the packed units, or null
    float bias_factor;  // of the bound: what is added for |bias| of a unit
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
    Int8Rows int8;
    ScreenCounts counts;

    Panel(const ScreenProblem& problem, int64_t rows, void* workspace)
        : q(problem),
          layout(q.kind, rows, q.p, q.n, q.m, q.z_m),
          m(q.m),
          positive(q.positive),
          w(q.packed, q.kind, q.p, q.n) {
        bias = q.bias ? w.bias : nullptr;
        bias_factor = summation_factor(q.n);
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
        int8.scale = static_cast<float*>(take(b * 4));
        int8.with_mean = static_cast<float*>(take(b * 4));
        int8.with_offset = static_cast<float*>(take(b * 4));
        int8.start = static_cast<int32_t*>(take(b * 4));
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
    // Of the unit's own bias: one that switches a unit off must not blur its neighbours.
    const F32 floor =
        fma(broadcast(s.bias_factor), abs(load(s.w.bias + unit)), broadcast(s.floor[r]));
    const F32 e = fma(broadcast(s.a[r]), load(s.w.norm + unit), floor);
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

DEEPL0_INLINE Maxima maxima(const Packed& w, int64_t begin_group, int64_t end_group) {
    Maxima most;
    for (int64_t g = begin_group; g < end_group; ++g) {
        most.norm = w.group_norm[g] > most.norm ? w.group_norm[g] : most.norm;
        most.error = w.group_error[g] > most.error ? w.group_error[g] : most.error;
        most.slack = w.group_slack[g] > most.slack ? w.group_slack[g] : most.slack;
    }
    return most;
}

/// Adds z of a row to the n units of its that are listed in ascending order.
DEEPL0_INLINE void add_code(const ScreenProblem& q, int64_t row, const int32_t* unit, int64_t n,
                            float* u) {
    const int64_t* at = q.z_indices + row * q.z_m;
    for (int64_t i = 0, j = 0; i < n && j < q.z_m;) {
        if (unit[i] == at[j]) u[i] += q.z_values[row * q.z_m + j];
        const bool step = unit[i] <= at[j];
        j += unit[i] >= at[j];
        i += step;
    }
}

}  // namespace deepl0::DEEPL0_ISA
