#include "screen.h"

#if defined(__x86_64__) && defined(__linux__) && DEEPL0_ISA_LEVEL == 0
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "screen_bf16.h"
#include "select.h"

namespace deepl0 {
namespace DEEPL0_ISA {

decltype(::deepl0::screen_pack) screen_pack;
decltype(::deepl0::screen_top_m) screen_top_m;
decltype(::deepl0::screen_bounds) screen_bounds;

DEEPL0_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DEEPL0_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DEEPL0_INLINE int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

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

// ---------------------------------------------------------------------------------------------
// The dot product that defines u: sixteen partial sums, lane l over the terms of k = l mod 16 in
// ascending order, one fma each, then summed by halves.

constexpr int kDotLanes = 16, kDotVectors = kDotLanes / kLanes;

DEEPL0_INLINE float sum_of_lanes(const F32 (&v)[kDotVectors]) {
#if DEEPL0_ISA_LEVEL == 2
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
#elif DEEPL0_ISA_LEVEL == 1
    const __m256 h = _mm256_add_ps(v[0], v[1]);
#else
    const F32 q = (v[0] + v[2]) + (v[1] + v[3]);
    return (q[0] + q[2]) + (q[1] + q[3]);
#endif
#if DEEPL0_ISA_LEVEL > 0
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
#endif
}

/// sum_of_lanes of four, with half the shuffles.
DEEPL0_INLINE void sums_of_lanes(const F32 (&v)[4][kDotVectors], float* out) {
#if DEEPL0_ISA_LEVEL > 0
    __m256 h[4];
    for (int i = 0; i < 4; ++i) {
#if DEEPL0_ISA_LEVEL == 2
        h[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i][0]), _mm512_extractf32x8_ps(v[i][0], 1));
#else
        h[i] = _mm256_add_ps(v[i][0], v[i][1]);
#endif
    }
    const auto fold = [](__m256 a, __m256 b) {
        return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20),
                             _mm256_permute2f128_ps(a, b, 0x31));
    };
    const __m256 q01 = fold(h[0], h[1]), q23 = fold(h[2], h[3]);
    const __m256 even =
        _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(q01), _mm256_castps_pd(q23)));
    const __m256 odd =
        _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(q01), _mm256_castps_pd(q23)));
    const __m256 d = _mm256_add_ps(even, odd);  // of rows 0, 2, 1, 3
    const __m256 s = _mm256_add_ps(d, _mm256_permute_ps(d, 0xb1));
    const __m128 s02 = _mm256_castps256_ps128(s), s13 = _mm256_extractf128_ps(s, 1);
    const __m128 t = _mm_shuffle_ps(s02, s13, 0x88);  // 0 2 1 3
    _mm_storeu_ps(out, _mm_shuffle_ps(t, t, 0xd8));
#else
    for (int i = 0; i < 4; ++i) out[i] = sum_of_lanes(v[i]);
#endif
}

/// out[i] = <x, w[i]>, i < N.
template <int N>
DEEPL0_INLINE void dots(const float* x, const float* const (&w)[N], int64_t n, float* out) {
    F32 acc[N][kDotVectors];
    for (int i = 0; i < N; ++i)
        for (int v = 0; v < kDotVectors; ++v) acc[i][v] = zero();
    int64_t k = 0;
    for (; k + kDotLanes <= n; k += kDotLanes) {
        for (int v = 0; v < kDotVectors; ++v) {
            const F32 xv = load(x + k + v * kLanes);
            for (int i = 0; i < N; ++i) acc[i][v] = fma(xv, load(w[i] + k + v * kLanes), acc[i][v]);
        }
    }
    for (int v = 0; v < kDotVectors && k < n; ++v, k += kLanes) {
        const int left = int(smaller(n - k, kLanes));
        const F32 xv = load_first(x + k, left);
        for (int i = 0; i < N; ++i) acc[i][v] = fma(xv, load_first(w[i] + k, left), acc[i][v]);
    }
    if constexpr (N == 4)
        sums_of_lanes(acc, out);
    else
        for (int i = 0; i < N; ++i) out[i] = sum_of_lanes(acc[i]);
}

// ---------------------------------------------------------------------------------------------
// The bound. With xb, Wb the rounded operands and all norms Euclidean,
//   |x.W - xb.Wb| <= |x - xb| |W| + |xb| |W - Wb|,
// and the roundings of the approximation, of the exact dot product and of the comparisons come to
// less than c |x| |W| with c = (3 n + 128) 2^-24, whatever the order of summation. What underflows
// or is flushed to zero adds less than (4 n + 64) 2^-126. So
//   e = A |W| + C |W - Wb| + tiny,   A = |x - xb| + c |x|,   C = |xb|,
// with norms rounded up. Nothing overflows while |x|, |W| <= 2^60; units beyond that have an
// infinite norm here, hence an infinite bound, and rows beyond it are not screened.

constexpr float kLargest = 0x1p60f;

DEEPL0_INLINE float summation_factor(int64_t n) { return float(3 * n + 128) * 0x1p-24f; }
DEEPL0_INLINE float underflow_term(int64_t n) { return float(4 * n + 64) * 0x1p-126f; }

/// At least the norm, from a float sum of n squares of any order, some of them underflowed.
DEEPL0_INLINE float norm_bound(float squares, int64_t n) {
    const float inflate = 1.0f + float(n + 64) * 0x1p-23f;
    const float s = squares * inflate + float(n + 1) * 0x1p-125f;
    return __builtin_sqrtf(s) * (1.0f + 0x1p-21f);
}

struct Norms {
    float whole, error;
};

// float32 operands: groups of units as [n, 32], blocks of rows as [n, kBlockRows].

constexpr int64_t kBlockRows = 8;

/// out[k, i] = rows[i, k] for i < some, 0 for i < N; the sums of squares of the rows.
template <int N>
DEEPL0_INLINE void interleave(const float* rows, int64_t ld, int64_t some, int64_t n, float* out,
                              float* squares) {
    for (int64_t i = 0; i < some; ++i) {
        const float* const row[1] = {rows + i * ld};
        dots(row[0], row, n, squares + i);
    }
    constexpr int64_t kTerms = 16;
    for (int64_t k = 0; k < n; k += kTerms) {
        const int64_t terms = smaller(kTerms, n - k);
        for (int64_t i = 0; i < N; ++i)
            for (int64_t t = 0; t < terms; ++t)
                out[(k + t) * N + i] = i < some ? rows[i * ld + k + t] : 0.0f;
    }
}

DEEPL0_NOINLINE void pack_columns(const float* w, int64_t ldw, int64_t units, int64_t n, float* out,
                                  float* squares) {
    interleave<kScreenGroup>(w, ldw, units, n, out, squares);
}

DEEPL0_NOINLINE void pack_float32_rows(const float* x, int64_t ldx, int64_t rows, int64_t n,
                                       float* out, float* squares) {
    interleave<kBlockRows>(x, ldx, rows, n, out, squares);
}

/// u[32, 32] (rows of stride ld) = 32 packed rows times a packed group.
DEEPL0_NOINLINE void float32_block(const float* x, const float* w, int64_t n, float* u,
                                   int64_t ld) {
    constexpr int kR = DEEPL0_ISA_LEVEL == 2 ? 8 : 4, kV = 2;
    for (int64_t r = 0; r < 32; r += kR) {
        const float* xr = x + r / kBlockRows * kBlockRows * n + r % kBlockRows;
        for (int64_t i = 0; i < kScreenGroup; i += kV * kLanes) {
            F32 acc[kR][kV];
            for (int a = 0; a < kR; ++a)
                for (int v = 0; v < kV; ++v) acc[a][v] = zero();
            for (int64_t k = 0; k < n; ++k) {
                F32 wv[kV];
                for (int v = 0; v < kV; ++v) wv[v] = load(w + k * kScreenGroup + i + v * kLanes);
                for (int a = 0; a < kR; ++a) {
                    const F32 xv = broadcast(xr[k * kBlockRows + a]);
                    for (int v = 0; v < kV; ++v) acc[a][v] = fma(xv, wv[v], acc[a][v]);
                }
            }
            for (int a = 0; a < kR; ++a)
                for (int v = 0; v < kV; ++v) store(u + (r + a) * ld + i + v * kLanes, acc[a][v]);
        }
    }
}

/// Packed W: norms and errors per unit and their maxima per group, then the groups.
struct Packed {
    float *norm = nullptr, *error = nullptr;              // of padding units -inf and 0
    float *group_norm = nullptr, *group_error = nullptr;  // of real units
    char* data = nullptr;
    int64_t groups = 0, group_bytes = 0;

    /// Tiles of 32 terms by 32 units, or n terms by 32 units.
    static int64_t bytes_of_group(bool bf16, int64_t n) {
        return kScreenGroup * (bf16 ? (n + 31) / 32 * 64 : n * 4);
    }
    Packed(const void* packed, bool bf16, int64_t p, int64_t n) {
        if (!packed) return;
        groups = (p + kScreenGroup - 1) / kScreenGroup;
        group_bytes = bytes_of_group(bf16, n);
        norm = static_cast<float*>(const_cast<void*>(packed));
        error = norm + groups * kScreenGroup;
        group_norm = error + groups * kScreenGroup;
        group_error = group_norm + round_up(groups, 16);
        data = reinterpret_cast<char*>(group_error + round_up(groups, 16));
    }
    static int64_t bytes(bool bf16, int64_t p, int64_t n) {
        const int64_t groups = (p + kScreenGroup - 1) / kScreenGroup;
        return 8 * (groups * kScreenGroup + round_up(groups, 16)) +
               groups * bytes_of_group(bf16, n);
    }
    void* group(int64_t g) const { return data + g * group_bytes; }
};

void screen_pack(ScreenKind kind, const float* w, int64_t ldw, int64_t p, int64_t n, int64_t begin,
                 int64_t end, void* packed) {
    const bool bf16 = kind != ScreenKind::float32;
    const Packed out(packed, bf16, p, n);
    for (int64_t g = begin / kScreenGroup; g * kScreenGroup < end; ++g) {
        const int64_t first_unit = g * kScreenGroup, units = smaller(kScreenGroup, p - first_unit);
        float* norm = out.norm + first_unit;
        float* error = out.error + first_unit;
        for (int64_t i = 0; i < kScreenGroup; ++i) {
            norm[i] = -__builtin_inff();
            error[i] = 0.0f;
        }
        const float* rows = w + first_unit * ldw;
        float squares[kScreenGroup] = {}, lost[kScreenGroup] = {};
#if DEEPL0_HAS_BF16
        if (bf16)
            pack_units(rows, ldw, units, n, static_cast<uint16_t*>(out.group(g)), squares, lost);
#endif
        if (!bf16) pack_columns(rows, ldw, units, n, static_cast<float*>(out.group(g)), squares);
        for (int64_t i = 0; i < units; ++i) {
            norm[i] = norm_bound(squares[i], n);
            error[i] = bf16 ? norm_bound(lost[i], n) : 0.0f;
        }
        float most_norm = 0.0f, most_error = 0.0f;
        for (int64_t i = 0; i < units; ++i) {
            if (!(norm[i] <= kLargest)) {
                norm[i] = __builtin_inff();
                error[i] = 0.0f;
            }
            most_norm = norm[i] > most_norm ? norm[i] : most_norm;
            most_error = error[i] > most_error ? error[i] : most_error;
        }
        out.group_norm[g] = most_norm;
        out.group_error[g] = most_error;
    }
}

// ---------------------------------------------------------------------------------------------
// State of a panel of rows.

struct Layout {
    int64_t panel;               // rows, a multiple of 32
    int64_t tile;                // units of the first tile, which gives the first bound
    int64_t capacity;            // candidates of a row
    int64_t stride;              // between the rows of candidates
    int64_t scratch, row_bytes;  // of int32, of a packed row
    bool bf16, tiles;

    Layout(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m)
        : bf16(kind != ScreenKind::float32), tiles(kind == ScreenKind::bfloat16_tiles) {
        panel = smaller(round_up(larger(rows, 1), 32), 512);
        const int64_t units = round_up(larger(p, 1), kScreenGroup);
        tile = smaller(units, larger(1024, round_up(4 * m, kScreenGroup)));
        capacity = smaller(round_up(4 * m + 256, 16), units + 64);
        stride = capacity + kBlock + 16;
        scratch = cut_scratch(larger(tile, stride)) + 64;
        row_bytes = bf16 ? (n + 31) / 32 * 64 : n * 4;
    }
    int64_t bytes() const {
        const int64_t selected = capacity + 64;
        return 4 * (round_up(6 * panel, 16) + 3 * panel * stride + round_up(scratch, 16) +
                    32 * tile + 3 * selected) +
               panel * row_bytes + 4096;
    }
};

/// Candidates of a row, units ascending. Screened: lo and hi are the bit patterns of bounds of |u|
/// (lo >= 0). Computed: lo is the key of u, hi its bit pattern.
struct Candidates {
    int32_t *lo, *hi, *unit;
};

struct Panel {
    Layout layout;
    int64_t m;
    float tiny;
    Packed w;
    float *a, *c;  // coefficients of the bound
    float* least;  // lower bound of the m-th largest |u|; inf: the row takes no more candidates
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
        : layout(q.kind, rows, q.p, q.n, q.m), m(q.m), w(q.packed, layout.bf16, q.p, q.n) {
        tiny = underflow_term(q.n);
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
        least = static_cast<float*>(take(b * 4));
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
    const F32 e = fma(broadcast(s.a[r]), load(s.w.norm + unit), broadcast(s.tiny));
    return fma(broadcast(s.c[r]), load(s.w.error + unit), e);
}

/// The smallest approximation of row r that may belong to an entry >= least, over units whose
/// norm and error are at most these.
DEEPL0_INLINE float least_approximation(const Panel& s, int64_t r, float norm, float error) {
    return s.least[r] - (s.a[r] * norm + s.c[r] * error + s.tiny);
}

/// Appends what may belong to the m largest, among the units [unit, unit + kLanes).
DEEPL0_INLINE void push(Panel& s, int64_t r, F32 u, int64_t unit) {
    const Candidates to = s.of(r);
    const int32_t n = s.count[r];
    const F32 e = bound_of(s, r, unit), size = abs(u);
    const I32 hi = as_bits(size + e);
    const Mask known = gt(broadcast(int32_t(0x7f800000)), as_bits(e));
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
DEEPL0_INLINE bool push_and_compact(Panel& s, int64_t r, F32 u, int64_t unit) {
    push(s, r, u, unit);
    if (__builtin_expect(s.count[r] <= s.trigger[r], 1)) return true;
    compact(s, r);
    return !is_shut(s, r);
}

/// One row of approximations of the units [unit, unit + width), unit a multiple of kLanes; u is
/// readable up to a multiple of kLanes. norm and error bound those of all these units.
DEEPL0_INLINE void scan_row(Panel& s, int64_t r, const float* u, int64_t unit, int64_t width,
                            float norm, float error) {
    if (is_shut(s, r)) return;
    const float t = least_approximation(s, r, norm, error);
    const I32 bound = broadcast(t > 0.0f ? bits_of(t) : 0);
    int64_t i = 0;
    for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
        const I32 k0 = key(load(u + i)), k1 = key(load(u + i + kLanes));
        const I32 k2 = key(load(u + i + 2 * kLanes)), k3 = key(load(u + i + 3 * kLanes));
        if (!any(ge(max(max(k0, k1), max(k2, k3)), bound))) continue;
        for (int v = 0; v < 4; ++v) {
            const F32 x = load(u + i + v * kLanes);
            if (any(ge(key(x), bound)) && !push_and_compact(s, r, x, unit + i + v * kLanes)) return;
        }
    }
    for (; i < width; i += kLanes) {
        const F32 x = load_first(u + i, int(smaller(width - i, kLanes)));
        if (any(ge(key(x), bound)) && !push_and_compact(s, r, x, unit + i)) return;
    }
}

/// The first bound of a row, from the approximations of its first units.
DEEPL0_INLINE void first_bound(Panel& s, int64_t r, const float* u, int64_t width, float norm,
                               float error) {
    if (is_shut(s, r) || s.m >= width) return;
    const int32_t at_least = s.m <= kMaxGrouped ? candidate_bound(u, width, s.m, s.scratch).lo
                                                : find_cut(u, width, s.m, s.scratch).key;
    const float e = s.a[r] * norm + s.c[r] * error + s.tiny;
    const float least = bit_cast<float>(at_least) - e;
    s.least[r] = least > 0.0f ? least : 0.0f;  // NaN: 0
}

DEEPL0_INLINE void group_maxima(const Packed& w, int64_t begin, int64_t end, float* norm,
                                float* error) {
    float a = 0.0f, b = 0.0f;
    for (int64_t g = begin / kScreenGroup; g * kScreenGroup < end; ++g) {
        a = w.group_norm[g] > a ? w.group_norm[g] : a;
        b = w.group_error[g] > b ? w.group_error[g] : b;
    }
    *norm = a;
    *error = b;
}

// ---------------------------------------------------------------------------------------------
// Rows: preparation, results, rows that are computed throughout.

DEEPL0_INLINE void prepare_row(Panel& s, const ScreenProblem& q, int64_t r, Norms x) {
    s.count[r] = 0;
    s.trigger[r] = int32_t(s.layout.capacity - 32);
    s.least[r] = 0.0f;
    const float rounded = s.layout.bf16 ? x.whole + x.error : 0.0f;
    s.a[r] = (x.error * 1.0001f + summation_factor(q.n) * x.whole) * q.bound_scale;
    s.c[r] = rounded * 1.0001f * q.bound_scale;
    if (!(x.whole <= kLargest)) give_up(s, r);
}

DEEPL0_INLINE void write_selected(const Panel& s, const float* values, const int32_t* unit,
                                  int64_t n, int64_t m, float* out, int64_t* indices) {
    if (n == m) {
        for (int64_t j = 0; j < m; ++j) out[j] = values[j];
        for (int64_t j = 0; j < m; ++j) indices[j] = unit[j];
        return;
    }
    int32_t* at = s.chosen;
    float* chosen = reinterpret_cast<float*>(at + s.layout.capacity + 64);
    select_top_m(values, n, m, s.scratch, at, chosen);
    for (int64_t j = 0; j < m; ++j) out[j] = chosen[j];
    for (int64_t j = 0; j < m; ++j) indices[j] = unit[at[j]];
}

DEEPL0_INLINE void fetch_row(const float* w, int64_t n) {
    for (int64_t k = 0; k < n; k += 16) __builtin_prefetch(w + k, 0, 3);
}

/// Computes the candidates of a screened row and selects among them.
DEEPL0_INLINE void finish_row(Panel& s, const ScreenProblem& q, int64_t r, const float* x,
                              float* out, int64_t* indices) {
    constexpr int64_t kAhead = 8;  // candidates on their way from memory
    const int64_t n = s.count[r];
    const int32_t* unit = s.of(r).unit;
    int64_t i = 0;
    for (; i < smaller(kAhead, n); ++i) fetch_row(q.w + unit[i] * q.ldw, q.n);
    for (i = 0; i + 4 <= n; i += 4) {
        for (int64_t a = i + kAhead; a < smaller(i + kAhead + 4, n); ++a)
            fetch_row(q.w + unit[a] * q.ldw, q.n);
        const float* const w[4] = {q.w + unit[i] * q.ldw, q.w + unit[i + 1] * q.ldw,
                                   q.w + unit[i + 2] * q.ldw, q.w + unit[i + 3] * q.ldw};
        dots(x, w, q.n, s.values + i);
    }
    for (; i < n; ++i) {
        const float* const w[1] = {q.w + unit[i] * q.ldw};
        dots(x, w, q.n, s.values + i);
    }
    s.counts.rescored += n;
    write_selected(s, s.values, unit, n, s.m, out, indices);
}

/// Exactly the m first candidates of a computed row remain.
DEEPL0_NOINLINE void compact_computed(Panel& s, int64_t r) {
    const int64_t n = s.count[r];
    if (n > s.m) {
        const Candidates at = s.of(r);
        const Bracket b{0, largest(at.lo, n) + 1, n, 0};
        const Cut cut = search(searchable(s, at.lo, n), n, s.m, b);
        if (cut.ties < 0) {
            Keeper<false> keeper(cut);
            filter(s, r, [&](I32 lo, I32) { return keeper(lo); });
        } else {
            Keeper<true> keeper(cut);  // lanes beyond the list come last and take no tie
            filter(s, r, [&](I32 lo, I32) { return keeper(lo); });
        }
        s.least[r] = bit_cast<float>(cut.key);
    }
    set_trigger(s, r);
}

DEEPL0_INLINE void push_computed(Panel& s, int64_t r, const float* u, int64_t unit, int lanes) {
    const F32 x = load_first(u, lanes);
    const I32 k = clamp_nan(key(x));
    // A later tie of the m-th largest loses to it; until there are m, everything counts.
    const int32_t n = s.count[r];
    const I32 bound = broadcast(bits_of(s.least[r]));
    const Mask in = mask_and(n < s.m ? ge(k, bound) : gt(k, bound), first(lanes));
    if (!any(in)) return;
    const Candidates to = s.of(r);
    compress(to.lo + n, in, k);
    compress(to.hi + n, in, as_bits(x));
    compress(to.unit + n, in, add(iota(), broadcast(int32_t(unit))));
    s.count[r] = n + count(in);
    if (s.count[r] > s.trigger[r]) compact_computed(s, r);
}

DEEPL0_NOINLINE void compute_full_rows(Panel& s, const ScreenProblem& q, int64_t begin) {
    constexpr int64_t kUnits = 64;
    alignas(64) float u[kUnits];
    for (int64_t f = 0; f < s.full_rows; ++f) {
        const int64_t r = s.full[f];
        s.count[r] = 0;
        s.least[r] = 0.0f;
        s.trigger[r] = int32_t(s.layout.capacity - 32);
    }
    for (int64_t unit = 0; unit < q.p; unit += kUnits) {
        const int64_t units = smaller(kUnits, q.p - unit);
        for (int64_t f = 0; f < s.full_rows; ++f) {
            const float* x = q.x + (begin + s.full[f]) * q.ldx;
            int64_t i = 0;
            for (; i + 4 <= units; i += 4) {
                const float* w0 = q.w + (unit + i) * q.ldw;
                const float* const w[4] = {w0, w0 + q.ldw, w0 + 2 * q.ldw, w0 + 3 * q.ldw};
                dots(x, w, q.n, u + i);
            }
            for (; i < units; ++i) {
                const float* const w[1] = {q.w + (unit + i) * q.ldw};
                dots(x, w, q.n, u + i);
            }
            for (i = 0; i < units; i += kLanes)
                push_computed(s, s.full[f], u + i, unit + i, int(smaller(units - i, kLanes)));
        }
    }
    for (int64_t f = 0; f < s.full_rows; ++f) {
        const int64_t r = s.full[f];
        compact_computed(s, r);
        const Candidates at = s.of(r);
        memcpy(s.values, at.hi, size_t(s.m) * 4);
        write_selected(s, s.values, at.unit, s.m, s.m, q.values + (begin + r) * s.m,
                       q.indices + (begin + r) * s.m);
    }
    s.counts.full_rows += s.full_rows;
}

// ---------------------------------------------------------------------------------------------
// Approximations, 32 rows by a group of 32 units at a time, and their scan.

DEEPL0_INLINE const void* packed_rows(const Panel& s, int64_t row) {
    return s.x + row * s.layout.row_bytes;
}

/// u[32, 32] (rows of stride ld) = the rows [row, row + 32) times group g.
DEEPL0_INLINE void approximate(const Panel& s, int64_t n, int64_t row, int64_t g, float* u,
                               int64_t ld) {
#if DEEPL0_HAS_BF16
    if (s.layout.bf16) {
        const auto block = s.layout.tiles ? amx_block : vector_block;
        block(static_cast<const uint16_t*>(packed_rows(s, row)),
              static_cast<const uint16_t*>(s.w.group(g)), (n + 31) / 32, u, ld);
        return;
    }
#endif
    float32_block(static_cast<const float*>(packed_rows(s, row)),
                  static_cast<const float*>(s.w.group(g)), n, u, ld);
}

/// Packs and prepares a panel; fills it up to a multiple of 32 with rows that take no candidates.
DEEPL0_INLINE void prepare_rows(Panel& s, const ScreenProblem& q, int64_t begin, int64_t rows) {
    constexpr int64_t kSome = 16;
    for (int64_t r = 0; r < round_up(rows, 32); r += kSome) {
        float squares[kSome] = {}, lost[kSome] = {};
        const int64_t some = larger(0, smaller(kSome, rows - r));
        const float* x = q.x + (begin + r) * q.ldx;
        char* to = s.x + r * s.layout.row_bytes;
#if DEEPL0_HAS_BF16
        if (s.layout.bf16)
            pack_rows(x, q.ldx, some, q.n, reinterpret_cast<uint16_t*>(to), squares, lost);
#endif
        if (!s.layout.bf16) {
            for (int64_t h = 0; h < kSome; h += kBlockRows)
                pack_float32_rows(x + h * q.ldx, q.ldx, larger(0, smaller(kBlockRows, some - h)),
                                  q.n, reinterpret_cast<float*>(to) + h * q.n, squares + h);
        }
        for (int64_t i = 0; i < some; ++i) {
            const float error = s.layout.bf16 ? norm_bound(lost[i], q.n) : 0.0f;
            prepare_row(s, q, r + i, {norm_bound(squares[i], q.n), error});
        }
        for (int64_t i = some; i < kSome; ++i) {
            s.c[r + i] = 0.0f;
            shut(s, r + i);
        }
    }
}

#if DEEPL0_ISA_LEVEL == 2
/// Two vectors at once: push of a whole group.
DEEPL0_INLINE void push_group(Panel& s, int64_t r, const float* u, int64_t g) {
    const int64_t unit = g * kScreenGroup, stride = s.layout.stride;
    const int32_t n = s.count[r];
    int32_t* to = s.candidates + 3 * r * stride + n;
    const F32 a = broadcast(s.a[r]), c = broadcast(s.c[r]), tiny = broadcast(s.tiny);
    const F32 least = broadcast(s.least[r]), inf = broadcast(__builtin_inff());
    const float *norm = s.w.norm + unit, *error = s.w.error + unit;
    const F32 e0 = fma(c, load(error), fma(a, load(norm), tiny));
    const F32 e1 = fma(c, load(error + 16), fma(a, load(norm + 16), tiny));
    const F32 u0 = abs(load(u)), u1 = abs(load(u + 16));
    const F32 hi0 = u0 + e0, hi1 = u1 + e1;
    // not (hi < least): a NaN of an unbounded unit is in
    const Mask in0 = _mm512_cmp_ps_mask(hi0, least, _CMP_NLT_UQ);
    const Mask in1 = _mm512_cmp_ps_mask(hi1, least, _CMP_NLT_UQ);
    const F32 lo0 = _mm512_maskz_max_ps(_mm512_cmp_ps_mask(e0, inf, _CMP_LT_OQ), u0 - e0, zero());
    const F32 lo1 = _mm512_maskz_max_ps(_mm512_cmp_ps_mask(e1, inf, _CMP_LT_OQ), u1 - e1, zero());
    const I32 at = add(iota(), broadcast(int32_t(unit)));
    const int n0 = count(in0);
    compress(to, in0, as_bits(lo0));
    compress(to + n0, in1, as_bits(lo1));
    compress(to + stride, in0, as_bits(hi0));
    compress(to + stride + n0, in1, as_bits(hi1));
    compress(to + 2 * stride, in0, at);
    compress(to + 2 * stride + n0, in1, add(at, broadcast(int32_t(16))));
    s.count[r] = n + n0 + count(in1);
}

/// 32 rows by one group of units, in u [32, 32]: which rows may have hits, then what they hit.
DEEPL0_INLINE void scan_block(Panel& s, int64_t row, const float* u, int64_t g) {
    constexpr int kRange = 0xb;  // of two values the larger modulus
    alignas(64) float bound[32];
    alignas(64) uint16_t hit[32];
    const F32 norm = broadcast(s.w.group_norm[g]), error = broadcast(s.w.group_error[g]);
    for (int v = 0; v < 32; v += kLanes) {
        F32 e = fma(load(s.a + row + v), norm, broadcast(s.tiny));
        e = fma(load(s.c + row + v), error, e);
        store(bound + v, load(s.least + row + v) - e);
    }
#pragma GCC unroll 8
    for (int r = 0; r < 32; ++r) {
        const F32 top = _mm512_range_ps(load(u + 32 * r), load(u + 32 * r + 16), kRange);
        hit[r] = _mm512_cmp_ps_mask(top, broadcast(bound[r]), _CMP_GE_OQ);
    }
    uint32_t rows = _mm512_test_epi16_mask(_mm512_load_si512(hit), _mm512_set1_epi16(-1));
    while (rows) {
        const int r = __builtin_ctz(rows);
        rows &= rows - 1;
        push_group(s, row + r, u + 32 * r, g);
        if (__builtin_expect(s.count[row + r] > s.trigger[row + r], 0)) compact(s, row + r);
    }
}
#else
DEEPL0_INLINE void scan_block(Panel& s, int64_t row, const float* u, int64_t g) {
    for (int64_t r = 0; r < 32; ++r)
        scan_row(s, row + r, u + 32 * r, g * kScreenGroup, kScreenGroup, s.w.group_norm[g],
                 s.w.group_error[g]);
}
#endif

/// Asks for the part of a block of bytes that falls to the rows [row, row + 32) of `rows`.
DEEPL0_INLINE void fetch_piece(const void* block, int64_t row, int64_t rows, int64_t bytes) {
    const char* at = static_cast<const char*>(block);
    const int64_t piece = round_up(bytes * 32 / rows, 64), begin = row / 32 * piece;
    for (int64_t i = begin; i < smaller(begin + piece, bytes); i += 64)
        __builtin_prefetch(at + i, 0, 2);
}

/// All candidates of a panel.
static void screen_panel(Panel& s, const ScreenProblem& q, int64_t begin, int64_t rows) {
    prepare_rows(s, q, begin, rows);
    if (s.full_rows == rows) return;
    const int64_t padded = round_up(rows, 32), tile = s.layout.tile, units = smaller(tile, q.p);
    float norm, error;
    group_maxima(s.w, 0, units, &norm, &error);
    for (int64_t row = 0; row < padded; row += 32) {
        for (int64_t g = 0; g * kScreenGroup < tile; ++g)
            approximate(s, q.n, row, g, s.tile + g * kScreenGroup, tile);
        for (int64_t r = 0; r < smaller(32, rows - row); ++r) {
            const float* u = s.tile + r * tile;
            first_bound(s, row + r, u, units, norm, error);
            scan_row(s, row + r, u, 0, units, norm, error);
            if (!is_shut(s, row + r)) compact(s, row + r);
        }
    }
    // A block is scanned while the tiles work on the next one: the processor overlaps the two, and
    // a mispredicted hit does not wait for products.
    alignas(64) float u[2][32 * 32];
    int64_t last_row = 0, last_g = -1;
    int at = 0;
    for (int64_t g = tile / kScreenGroup; g < s.w.groups; ++g) {
        const void* next = s.w.group(smaller(g + 1, s.w.groups - 1));
        for (int64_t row = 0; row < padded; row += 32) {
            fetch_piece(next, row, padded, s.w.group_bytes);
            approximate(s, q.n, row, g, u[at], 32);
            at ^= 1;
            if (last_g >= 0) scan_block(s, last_row, u[at], last_g);
            last_row = row;
            last_g = g;
        }
    }
    if (last_g >= 0) scan_block(s, last_row, u[at ^ 1], last_g);
}

void screen_top_m(const ScreenProblem& q, int64_t begin, int64_t end, void* workspace,
                  ScreenCounts* counts) {
    Panel s(q, end - begin, workspace);
    if (q.m <= 0) return;
#if DEEPL0_HAS_BF16
    if (s.layout.tiles) amx_begin();
#endif
    for (int64_t r0 = begin; r0 < end; r0 += s.layout.panel) {
        const int64_t rows = smaller(s.layout.panel, end - r0);
        s.full_rows = 0;
        if (q.packed) {
            screen_panel(s, q, r0, rows);
        } else {
            for (int64_t r = 0; r < rows; ++r) give_up(s, r);
        }
        for (int64_t r = 0; r < rows; ++r) {
            if (!is_shut(s, r) && q.p > s.layout.tile) compact(s, r);
            if (is_shut(s, r)) continue;
            finish_row(s, q, r, q.x + (r0 + r) * q.ldx, q.values + (r0 + r) * s.m,
                       q.indices + (r0 + r) * s.m);
        }
        if (s.full_rows) compute_full_rows(s, q, r0);
    }
#if DEEPL0_HAS_BF16
    if (s.layout.tiles) amx_end();
#endif
    if (counts) {
        counts->rescored += s.counts.rescored;
        counts->full_rows += s.counts.full_rows;
    }
}

void screen_bounds(const ScreenProblem& q, int64_t begin, int64_t end, void* workspace, float* u,
                   float* e) {
    Panel s(q, end - begin, workspace);
    for (int64_t r = begin; r < end; ++r, u += q.p, e += q.p) {
        s.full_rows = 0;
        prepare_rows(s, q, r, 1);
        alignas(64) float block[32 * 32];
#if DEEPL0_HAS_BF16
        if (s.layout.tiles) amx_begin();
#endif
        for (int64_t g = 0; g < s.w.groups; ++g) {
            approximate(s, q.n, 0, g, block, 32);
            for (int64_t i = 0; i < smaller(32, q.p - g * 32); ++i) u[g * 32 + i] = block[i];
        }
#if DEEPL0_HAS_BF16
        if (s.layout.tiles) amx_end();
#endif
        alignas(64) float lanes[kLanes];
        for (int64_t i = 0; i < q.p; ++i) {
            store(lanes, bound_of(s, 0, i / kLanes * kLanes));
            e[i] = s.full_rows ? __builtin_inff() : lanes[i % kLanes];
        }
    }
}

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0

DEEPL0_DECLARE_LEVELS(screen_pack)
DEEPL0_DECLARE_LEVELS(screen_top_m)
DEEPL0_DECLARE_LEVELS(screen_bounds)

namespace {

#if DEEPL0_X86 && defined(__linux__)
/// vdpbf16ps in the CPU. That the vector registers are enabled goes with level avx512.
bool cpu_has_vectors() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
}

/// amx-bf16 and amx-tile in the CPU, tile state enabled by the kernel and granted to this process.
bool ask_for_tiles() {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return false;  // osxsave
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if ((edx >> 22 & 1) == 0 || (edx >> 24 & 1) == 0 || !cpu_has_vectors()) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool cpu_has_vectors() { return false; }
bool ask_for_tiles() { return false; }
#endif

}  // namespace

bool screen_has(ScreenKind kind) {
    if (kind == ScreenKind::float32) return true;
    if (active_isa() != Isa::avx512) return false;
    static const bool vectors = cpu_has_vectors(), tiles = ask_for_tiles();
    return kind == ScreenKind::bfloat16_tiles ? tiles : vectors;
}

bool screen_is_fast(ScreenKind kind) {
#if DEEPL0_X86
    if (kind == ScreenKind::bfloat16_vectors && !__builtin_cpu_is("amd")) return false;
#endif
    return screen_has(kind);
}

int64_t screen_packed_bytes(ScreenKind kind, int64_t p, int64_t n) {
    return scalar::Packed::bytes(kind != ScreenKind::float32, p, n);
}

void screen_pack(ScreenKind kind, const float* w, int64_t ldw, int64_t p, int64_t n, int64_t begin,
                 int64_t end, void* packed) {
    DEEPL0_PICK(screen_pack)(kind, w, ldw, p, n, begin, end, packed);
}

int64_t screen_workspace_bytes(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m) {
    return scalar::Layout(kind, rows, p, n, m).bytes();
}

void screen_top_m(const ScreenProblem& problem, int64_t begin, int64_t end, void* workspace,
                  ScreenCounts* counts) {
    DEEPL0_PICK(screen_top_m)(problem, begin, end, workspace, counts);
}

void screen_bounds(const ScreenProblem& problem, int64_t begin, int64_t end, void* workspace,
                   float* approximations, float* bounds) {
    DEEPL0_PICK(screen_bounds)(problem, begin, end, workspace, approximations, bounds);
}

#endif

}  // namespace deepl0
