#include "screen.h"

#include "kernel_table.h"
#include "screen_candidates.h"
#include "screen_few.h"

namespace deepl0 {
namespace DEEPL0_ISA {
namespace {

// Rows: preparation, results, rows that are computed throughout.

struct Norms {
    float whole, centred, error;  // centred: of what is rounded
};

/// Row r of the panel is row `row` of the problem.
DEEPL0_INLINE void prepare_row(Panel& s, int64_t r, Norms x) {
    const ScreenProblem& q = s.q;
    const int64_t row = s.begin + r;
    s.count[r] = 0;
    s.trigger[r] = int32_t(s.layout.capacity - 32);
    s.least[r] = least_of_all(s);
    float most_z = 0.0f;
    bool bounded = x.whole <= kLargest;
    for (int64_t j = 0; j < q.z_m; ++j) {
        const float size = __builtin_fabsf(q.z_values[row * q.z_m + j]);
        bounded = bounded && size <= kLargest;
        most_z = size > most_z ? size : most_z;
    }
    s.floor[r] = underflow_term(q.n) + 0x1p-20f * most_z;
    const bool exact = q.kind == ScreenKind::float32, int8 = q.kind == ScreenKind::int8_vectors;
    const float c = int8 ? int8_summation_factor(q.n) : summation_factor(q.n);
    s.a[r] = (x.error * 1.0001f + c * x.whole) * q.bound_scale;
    s.c[r] = exact ? 0.0f : (x.centred + x.error) * 1.0001f * q.bound_scale;
    if (!bounded) give_up(s, r);
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
    select_top_m<false>(values, n, m, s.scratch, at, chosen);
    for (int64_t j = 0; j < m; ++j) out[j] = chosen[j];
    for (int64_t j = 0; j < m; ++j) indices[j] = unit[at[j]];
}

/// The code of a row of whose n candidates, in `values`, fewer than m are positive: these, and the
/// first of all other units as zeros.
DEEPL0_NOINLINE void write_with_zeros(const float* values, const int32_t* unit, int64_t n,
                                      int64_t m, float* out, int64_t* indices) {
    int64_t positive = 0;
    for (int64_t j = 0; j < n; ++j) positive += values[j] != 0.0f;
    int64_t zeros = m - positive, i = 0;
    for (int64_t j = 0, next = 0; j < m; ++j, ++next) {
        while (i < n && values[i] == 0.0f) ++i;
        const bool is_zero = zeros > 0 && !(i < n && unit[i] == next);
        if (!is_zero) next = unit[i];
        zeros -= is_zero;
        out[j] = is_zero ? 0.0f : values[i];
        indices[j] = next;
        i += !is_zero;
    }
}

/// Computes the best candidates of a screened row, then those of the others that may still be among
/// the m largest, and selects.
DEEPL0_INLINE void finish_row(Panel& s, int64_t r) {
    const int32_t before = bits_of(s.least[r]);
    const Chosen best = compute_best(s, r);
    const int32_t least = bits_of(s.least[r]);
    Chosen rest{s.scratch, s.scratch + s.layout.stride, s.values + best.n};
    compute(s, r, rest, [&](I32 lo, I32 hi) {
        return mask_and(gt(broadcast(before), lo), ge(hi, broadcast(least)));
    });
    const Candidates at = s.of(r);
    constexpr int32_t kDone = INT32_MAX;  // no key is that large
    const Chosen parts[] = {best, rest};
    for (const Chosen& part : parts) {
        for (int64_t i = 0; i < part.n; ++i) {
            at.lo[part.at[i]] = kDone;
            at.hi[part.at[i]] = bits_of(part.u[i]);
        }
    }
    filter(s, r, [&](I32 lo, I32) { return eq(lo, broadcast(kDone)); });
    const int64_t n = s.count[r];
    memcpy(s.values, at.hi, size_t(n) * 4);
    float* const out = s.q.values + (s.begin + r) * s.m;
    int64_t* const indices = s.q.indices + (s.begin + r) * s.m;
    if (s.positive) {
        int64_t positive = 0;
        for (int64_t i = 0; i < n; ++i) positive += s.values[i] != 0.0f;
        if (positive < s.m) {
            write_with_zeros(s.values, at.unit, n, s.m, out, indices);
            return;
        }
    }
    write_selected(s, s.values, at.unit, n, s.m, out, indices);
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
    const F32 v = load_first(u, lanes), x = s.positive ? positive_part(v) : v;
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

DEEPL0_NOINLINE void compute_full_rows(Panel& s) {
    const ScreenProblem& q = s.q;
    const int64_t begin = s.begin;
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
            if (q.bias || q.z_m > 0) add_rest(q, begin + s.full[f], unit, units, u);
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

// Approximations, 32 rows by a group of 32 units at a time, and their scan.

DEEPL0_INLINE const void* packed_rows(const Panel& s, int64_t row) {
    return s.x + row * s.layout.row_bytes;
}

/// u[32, 32] (rows of stride ld) = the rows [row, row + 32) times group g, bias and z with it.
DEEPL0_INLINE void approximate(const Panel& s, int64_t row, int64_t g, float* u, int64_t ld) {
    const int64_t n = s.q.n, some = smaller(32, s.rows - row);
    const float* const bias = s.bias ? s.bias + g * kScreenGroup : nullptr;
#if DEEPL0_HAS_BF16
    if (uses_tiles(s.q))
        amx_block(static_cast<const uint16_t*>(packed_rows(s, row)),
                  static_cast<const uint16_t*>(s.w.group(g)), bias, (n + 31) / 32, u, ld);
    else if (is_bf16(s.q.kind))
        vector_block(static_cast<const uint16_t*>(packed_rows(s, row)), some,
                     static_cast<const uint16_t*>(s.w.group(g)), bias, (n + 31) / 32, u, ld);
#endif
#if DEEPL0_HAS_INT8
    if (s.q.kind == ScreenKind::int8_vectors)
        int8_block(static_cast<const int8_t*>(packed_rows(s, row)), s.int8.from(row), some,
                   s.w.group(g), bias, n, u, ld);
#endif
    if (s.q.kind == ScreenKind::float32)
        float32_block(static_cast<const float*>(packed_rows(s, row)), some,
                      static_cast<const float*>(s.w.group(g)), bias, n, u, ld);
    if (s.layout.added == 0) return;
    const int32_t* start = s.z.start + row / 32 * s.w.groups + g;
    for (int32_t e = start[0]; e < start[1]; ++e)
        u[s.z.at[e] / 32 * ld + s.z.at[e] % 32] += s.z.value[e];
}

/// Sorts z of the rows of a panel by the blocks that it is added to. Rows that are shut have none.
DEEPL0_NOINLINE void prepare_added(Panel& s, int64_t rows) {
    const ScreenProblem& q = s.q;
    const int64_t begin = s.begin;
    const int64_t groups = s.w.groups, blocks = (rows + 31) / 32 * groups;
    int32_t* const start = s.z.start;
    memset(start, 0, size_t(blocks + 1) * 4);
    const auto each = [&](auto f) {
        for (int64_t r = 0; r < rows; ++r) {
            if (is_shut(s, r)) continue;
            for (int64_t j = 0; j < q.z_m; ++j) {
                const int64_t i = q.z_indices[(begin + r) * q.z_m + j];
                f(r / 32 * groups + i / kScreenGroup, r % 32 * 32 + i % kScreenGroup,
                  q.z_values[(begin + r) * q.z_m + j]);
            }
        }
    };
    each([&](int64_t block, int64_t, float) { ++start[block + 1]; });
    for (int64_t b = 0; b < blocks; ++b) start[b + 1] += start[b];
    // Each start moves to its end, which is the next one's start; then they are shifted back.
    each([&](int64_t block, int64_t at, float value) {
        s.z.at[start[block]] = int32_t(at);
        s.z.value[start[block]++] = value;
    });
    memmove(start + 1, start, size_t(blocks) * 4);
    start[0] = 0;
}

/// Packs and prepares a panel; fills it up to a multiple of 32 with rows that take no candidates.
DEEPL0_INLINE void prepare_rows(Panel& s, int64_t rows) {
    const ScreenProblem& q = s.q;
    s.rows = rows;
    constexpr int64_t kSome = 16;
    for (int64_t r = 0; r < round_up(rows, 32); r += kSome) {
        float whole[kSome] = {}, lost[kSome] = {};
        const int64_t some = larger(0, smaller(kSome, rows - r));
        const float* x = q.x + (s.begin + r) * q.ldx;
        char* to = s.x + r * s.layout.row_bytes;
#if DEEPL0_HAS_BF16
        if (is_bf16(q.kind))
            pack_rows(x, q.ldx, some, q.n, reinterpret_cast<uint16_t*>(to), whole, lost);
#endif
        const float* rounded = whole;
#if DEEPL0_HAS_INT8
        float centred[kSome] = {};
        if (q.kind == ScreenKind::int8_vectors) {
            pack_int8_rows(x, q.ldx, some, q.n, to, s.int8.from(r), {whole, centred, lost});
            rounded = centred;
        }
#endif
        if (q.kind == ScreenKind::float32) {
            for (int64_t h = 0; h < kSome; h += kBlockRows)
                pack_float32_rows(x + h * q.ldx, q.ldx, larger(0, smaller(kBlockRows, some - h)),
                                  q.n, reinterpret_cast<float*>(to) + h * q.n, whole + h);
        }
        for (int64_t i = 0; i < some; ++i) {
            const bool exact = q.kind == ScreenKind::float32;
            prepare_row(s, r + i,
                        {norm_bound(whole[i], q.n), norm_bound(rounded[i], q.n),
                         exact ? 0.0f : norm_bound(lost[i], q.n)});
        }
        for (int64_t i = some; i < kSome; ++i) {
            s.c[r + i] = s.floor[r + i] = 0.0f;
            shut(s, r + i);
        }
    }
    if (q.z_m > 0) prepare_added(s, rows);
}

#if DEEPL0_ISA_LEVEL == 2
/// Two vectors at once: push of a whole group.
template <bool Positive>
DEEPL0_INLINE void push_group(Panel& s, int64_t r, const float* u, int64_t g) {
    const int64_t unit = g * kScreenGroup, stride = s.layout.stride;
    const int32_t n = s.count[r];
    int32_t* to = s.candidates + 3 * r * stride + n;
    const F32 a = broadcast(s.a[r]), c = broadcast(s.c[r]);
    const F32 floor = broadcast(s.floor[r]), factor = broadcast(s.bias_factor);
    const float* bias = s.w.bias + unit;
    const F32 least = broadcast(s.least[r]), inf = broadcast(__builtin_inff());
    const float *norm = s.w.norm + unit, *error = s.w.error + unit;
    const F32 floor0 = fma(factor, abs(load(bias)), floor);
    const F32 floor1 = fma(factor, abs(load(bias + 16)), floor);
    const F32 e0 = fma(c, load(error), fma(a, load(norm), floor0));
    const F32 e1 = fma(c, load(error + 16), fma(a, load(norm + 16), floor1));
    const F32 v0 = load(u), v1 = load(u + 16);
    const F32 u0 = Positive ? v0 : abs(v0), u1 = Positive ? v1 : abs(v1);
    const Mask known0 = _mm512_cmp_ps_mask(e0, inf, _CMP_LT_OQ);
    const Mask known1 = _mm512_cmp_ps_mask(e1, inf, _CMP_LT_OQ);
    // Unknown: inf; of a modulus and inf the sum is that already, or a NaN above it.
    const F32 hi0 = Positive ? _mm512_mask_add_ps(inf, known0, u0, e0) : u0 + e0;
    const F32 hi1 = Positive ? _mm512_mask_add_ps(inf, known1, u1, e1) : u1 + e1;
    // not (hi < least): a NaN of an unbounded unit is in
    const Mask in0 = _mm512_cmp_ps_mask(hi0, least, _CMP_NLT_UQ);
    const Mask in1 = _mm512_cmp_ps_mask(hi1, least, _CMP_NLT_UQ);
    const F32 lo0 = _mm512_maskz_max_ps(known0, u0 - e0, zero());
    const F32 lo1 = _mm512_maskz_max_ps(known1, u1 - e1, zero());
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
template <bool Positive>
DEEPL0_INLINE void scan_block(Panel& s, int64_t row, const float* u, int64_t g) {
    constexpr int kRange = 0xb;  // of two values the larger modulus
    alignas(64) float bound[32];
    alignas(64) uint16_t hit[32] = {};
    const F32 norm = broadcast(s.w.group_norm[g]), error = broadcast(s.w.group_error[g]);
    const F32 slack = broadcast(s.w.group_slack[g]);
    uint32_t open = 0;  // rows that are not shut
    for (int v = 0; v < 32; v += kLanes) {
        const F32 least = load(s.least + row + v);
        F32 e = fma(load(s.a + row + v), norm, load(s.floor + row + v) + slack);
        e = fma(load(s.c + row + v), error, e);
        store(bound + v, least - e);
        open |= bits(_mm512_cmp_ps_mask(least, broadcast(__builtin_inff()), _CMP_NEQ_UQ)) << v;
    }
    const int some = int(smaller(32, s.rows - row));  // of the others u may hold anything
#pragma GCC unroll 8
    for (int r = 0; r < some; ++r) {
        const F32 u0 = load(u + 32 * r), u1 = load(u + 32 * r + 16);
        const F32 top = Positive ? _mm512_max_ps(u0, u1) : _mm512_range_ps(u0, u1, kRange);
        hit[r] = not_less(top, broadcast(bound[r]));  // a NaN of an unbounded unit is a hit
    }
    uint32_t rows = _mm512_test_epi16_mask(_mm512_load_si512(hit), _mm512_set1_epi16(-1)) & open;
    while (rows) {
        const int r = __builtin_ctz(rows);
        rows &= rows - 1;
        push_group<Positive>(s, row + r, u + 32 * r, g);
        if (__builtin_expect(s.count[row + r] > s.trigger[row + r], 0)) compact(s, row + r);
    }
}
#else
template <bool Positive>
DEEPL0_INLINE void scan_block(Panel& s, int64_t row, const float* u, int64_t g) {
    const Maxima group = maxima(s.w, g, g + 1);
    for (int64_t r = 0; r < 32; ++r)
        scan_row<Positive>(s, row + r, u + 32 * r, g * kScreenGroup, kScreenGroup, group);
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
template <bool Positive>
void screen_panel(Panel& s, int64_t rows) {
    prepare_rows(s, rows);
    if (s.full_rows == rows) return;
    const int64_t padded = round_up(rows, 32), tile = s.layout.tile, units = smaller(tile, s.q.p);
    const Maxima most = maxima(s.w, 0, tile / kScreenGroup);
    for (int64_t row = 0; row < padded; row += 32) {
        for (int64_t g = 0; g * kScreenGroup < tile; ++g)
            approximate(s, row, g, s.tile + g * kScreenGroup, tile);
        for (int64_t r = 0; r < smaller(32, rows - row); ++r) {
            const float* u = s.tile + r * tile;
            first_bound<Positive>(s, row + r, u, units, most);
            scan_row<Positive>(s, row + r, u, 0, units, most);
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
            approximate(s, row, g, u[at], 32);
            at ^= 1;
            if (last_g >= 0) scan_block<Positive>(s, last_row, u[at], last_g);
            last_row = row;
            last_g = g;
        }
    }
    if (last_g >= 0) scan_block<Positive>(s, last_row, u[at ^ 1], last_g);
}

void top_m(const ScreenProblem& q, int64_t begin, int64_t end, void* workspace,
           ScreenCounts* counts) {
    Panel s(q, end - begin, workspace);
    if (q.m <= 0) return;
#if DEEPL0_HAS_BF16
    if (uses_tiles(q)) amx_begin();
#endif
    for (int64_t r0 = begin; r0 < end; r0 += s.layout.panel) {
        const int64_t rows = smaller(s.layout.panel, end - r0);
        s.begin = r0;
        s.full_rows = 0;
        if (q.packed) {
            const auto screen = q.positive ? screen_panel<true> : screen_panel<false>;
            screen(s, rows);
        } else {
            for (int64_t r = 0; r < rows; ++r) give_up(s, r);
        }
        for (int64_t r = 0; r < rows; ++r) {
            if (!is_shut(s, r) && q.p > s.layout.tile) compact(s, r);
            if (is_shut(s, r)) continue;
            finish_row(s, r);
        }
        if (s.full_rows) compute_full_rows(s);
    }
#if DEEPL0_HAS_BF16
    if (uses_tiles(q)) amx_end();
#endif
    if (counts) {
        counts->rescored += s.counts.rescored;
        counts->full_rows += s.counts.full_rows;
    }
}

void few(const ScreenProblem& q, int64_t rows, StepMatrices<float> steps, float largest_s,
         TopMCodes<float> out, void* workspace, bool* decided) {
    Panel s(q, rows, workspace);
    s.begin = 0;
    const int64_t ld = s.w.groups * kScreenGroup;
    char* at = static_cast<char*>(workspace) + round_up(s.layout.bytes(), 64);
    float* const u = reinterpret_cast<float*>(at);
    const FewScratch scratch(at + round_up(32 * ld * 4, 64), q.p, q.m);
    prepare_rows(s, rows);
#if DEEPL0_HAS_BF16
    if (uses_tiles(q)) amx_begin();
#endif
    for (int64_t g = 0; g < s.w.groups; ++g) approximate(s, 0, g, u + g * kScreenGroup, ld);
#if DEEPL0_HAS_BF16
    if (uses_tiles(q)) amx_end();
#endif
    const auto row = q.positive ? few_row<true> : few_row<false>;
    for (int64_t r = 0; r < rows; ++r)
        decided[r] = q.m > 0 && row(s, r, u + r * ld, steps, largest_s, out, scratch);
}

void bounds(const ScreenProblem& q, int64_t begin, int64_t end, void* workspace, float* u,
            float* e) {
    Panel s(q, end - begin, workspace);
    for (int64_t r = begin; r < end; ++r, u += q.p, e += q.p) {
        s.begin = r;
        s.full_rows = 0;
        prepare_rows(s, 1);
        alignas(64) float block[32 * 32];
#if DEEPL0_HAS_BF16
        if (uses_tiles(q)) amx_begin();
#endif
        for (int64_t g = 0; g < s.w.groups; ++g) {
            approximate(s, 0, g, block, 32);
            for (int64_t i = 0; i < smaller(32, q.p - g * 32); ++i) u[g * 32 + i] = block[i];
        }
#if DEEPL0_HAS_BF16
        if (uses_tiles(q)) amx_end();
#endif
        alignas(64) float lanes[kLanes];
        for (int64_t i = 0; i < q.p; ++i) {
            store(lanes, bound_of(s, 0, i / kLanes * kLanes));
            e[i] = s.full_rows ? __builtin_inff() : lanes[i % kLanes];
        }
    }
}

}  // namespace

extern const ScreenKernels screen_table;
const ScreenKernels screen_table = {pack, top_m, few, bounds};

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLE(ScreenKernels, screen)

bool screen_has(ScreenKind kind, int64_t n) {
    if (kind == ScreenKind::float32) return true;
    if (active_isa() != Isa::avx512) return false;
    if (kind == ScreenKind::int8_vectors) return cpu_has_int8_vectors() && n <= kInt8MostTerms;
    return kind == ScreenKind::bfloat16_tiles ? cpu_grants_bfloat16_tiles()
                                              : cpu_has_bfloat16_vectors();
}

bool screen_is_fast(ScreenKind kind, int64_t n) {
#if DEEPL0_X86
    if (kind == ScreenKind::bfloat16_vectors && !__builtin_cpu_is("amd")) return false;
#endif
    return screen_has(kind, n);
}

int64_t screen_packed_bytes(ScreenKind kind, int64_t p, int64_t n) {
    return scalar::Packed::bytes(kind, p, n);
}

int64_t screen_workspace_bytes(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m,
                               int64_t z_m) {
    return scalar::Layout(kind, rows, p, n, m, z_m).bytes();
}

int64_t screen_few_workspace_bytes(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m,
                                   int64_t z_m) {
    return round_up(scalar::Layout(kind, rows, p, n, m, z_m).bytes(), 64) +
           round_up(32 * round_up(p, kScreenGroup) * 4, 64) + scalar::FewScratch::bytes(p, m);
}
#endif

}  // namespace deepl0
