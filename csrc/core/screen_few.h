// All stages of one row at a time whose W x is screened, or a stage W x + b + z of a factored
// encoder: for few rows, where reading W is what takes time. For files that are compiled once per
// ISA level.
//
// An entry is what the encoder's kernels for few rows make of it, bit for bit: b + dot(x, W_i), to
// which the m products with S are added one after the other. The approximation has these products,
// too; only dot(x, W_i) is approximated, once for all stages. Both sums are rounded m + 1 times, so
// that a later stage adds (m + 2) 2^-22 (|u| + sum |z| max |S|) to the bound.
#pragma once

#include "encode.h"
#include "gather.h"
#include "screen_panel.h"

namespace deepl0::DEEPL0_ISA {

/// Memory of the stages of a row.
struct FewScratch {
    float *sum, *error, *later, *low, *wx;  // [p] each, padded
    uint8_t* known;                         // which wx have been computed
    int32_t *list, *chosen, *scratch;
    float *values, *selected;
    int64_t capacity;

    static int64_t most(int64_t p) { return p / 4 + 64; }
    static int64_t bytes(int64_t p, int64_t m) {
        const int64_t units = round_up(p, 64) + 64, list = most(p) + 64;
        return 4 * (5 * units + 2 * list + cut_scratch(larger(units, list)) + 2 * (m + 64)) +
               units + 1024;
    }
    FewScratch(void* at, int64_t p, int64_t m) : capacity(most(p)) {
        char* next = static_cast<char*>(at);
        const auto take = [&](int64_t bytes) {
            char* block = next;
            next += round_up(bytes, 64);
            return block;
        };
        const int64_t units = round_up(p, 64) + 64, room = capacity + 64;
        sum = reinterpret_cast<float*>(take(units * 4));
        error = reinterpret_cast<float*>(take(units * 4));
        later = reinterpret_cast<float*>(take(units * 4));
        low = reinterpret_cast<float*>(take(units * 4));
        wx = reinterpret_cast<float*>(take(units * 4));
        known = reinterpret_cast<uint8_t*>(take(units));
        list = reinterpret_cast<int32_t*>(take(room * 4));
        values = reinterpret_cast<float*>(take(room * 4));
        chosen = reinterpret_cast<int32_t*>(take((m + 64) * 4));
        selected = reinterpret_cast<float*>(take((m + 64) * 4));
        scratch = reinterpret_cast<int32_t*>(take(cut_scratch(larger(units, room)) * 4));
    }
};

/// The candidates for the m largest of max(u, 0), or of |u|, where u is within `error` of s.sum;
/// how many, or -1 where the bound does not decide.
template <bool Positive>
DEEPL0_INLINE int64_t few_candidates(const FewScratch& s, const float* error, int64_t p,
                                     int64_t m) {
    const F32 inf = broadcast(__builtin_inff());
    for (int64_t i = 0; i < p; i += kLanes) {
        const F32 u = load(s.sum + i), e = load(error + i), size = Positive ? u : abs(u);
        const Mask known = gt(as_bits(inf), as_bits(e));
        store(s.low + i, as_floats(max(as_bits(keep(known, size - e)), broadcast(int32_t(0)))));
    }
    const float least = bit_cast<float>(find_cut<false>(s.low, p, m, s.scratch).key);
    if (!(least > 0.0f)) return -1;
    int64_t n = 0;
    for (int64_t i = 0; i < p; i += kLanes) {
        const F32 u = load(s.sum + i), e = load(error + i);
        // A NaN of an unbounded unit is a candidate.
        Mask in = not_less((Positive ? u : abs(u)) + e, broadcast(least));
        in = mask_and(in, first(int(smaller(p - i, kLanes))));
        if (!any(in)) continue;
        if (n + kLanes > s.capacity) return -1;
        compress(s.list + n, in, add(iota(), broadcast(int32_t(i))));
        n += count(in);
    }
    return n;
}

/// Row r of a panel of few through all stages. approximations: of W x + b. False where the bound
/// does not decide: nothing is promised of its codes then.
template <bool Positive>
DEEPL0_NOINLINE bool few_row(const Panel& panel, int64_t r, const float* approximations,
                             const StepMatrices<float>& steps, float largest_s,
                             const TopMCodes<float>& out, const FewScratch& s) {
    const ScreenProblem& q = panel.q;
    const int64_t row = panel.begin + r, p = q.p, m = q.m;
    if (is_shut(panel, r)) return false;
    const float* const x = q.x + row * q.ldx;
    memset(s.known, 0, size_t(p));
    for (int64_t i = 0; i < p; i += kLanes) store(s.error + i, bound_of(panel, r, i));
    memcpy(s.sum, approximations, size_t(p) * 4);
    const float* z = nullptr;
    const int64_t* at = nullptr;
    for (int64_t k = 0; k < out.stages; ++k) {
        const float* const step = steps.data + (k - 1) * steps.step_stride;
        if (k > 0) {
            float size = 0.0f;
            for (int64_t j = 0; j < m; ++j) size += __builtin_fabsf(z[j]);
            if (!(size * largest_s <= kLargest)) return false;
            gather_sum(s.sum, approximations, step, p, z, at, m, p);
            const F32 rounding = broadcast(float(m + 2) * 0x1p-22f);
            const F32 fixed = broadcast(float(m + 2) * 0x1p-22f * 1.01f * size * largest_s);
            for (int64_t i = 0; i < p; i += kLanes) {
                const F32 e = fma(load(s.error + i), broadcast(1.001f), fixed);
                const F32 u = fma(rounding, abs(load(s.sum + i)), e);
                store(s.later + i, fma(rounding, abs(load(approximations + i)), u));
            }
        }
        const float* const error = k > 0 ? s.later : s.error;
        const int64_t n = few_candidates<Positive>(s, error, p, m);
        if (n < m) return false;
        for (int64_t c = 0; c < n; ++c) {
            const int64_t i = s.list[c];
            if (!s.known[i]) {
                const float sum = dot(x, q.w + i * q.ldw, q.n);
                s.wx[i] = q.bias ? q.bias[i] + sum : sum;
                s.known[i] = 1;
            }
            float u = s.wx[i];
            for (int64_t j = 0; j < m && k > 0; ++j) u = fused(z[j], step[at[j] * p + i], u);
            s.values[c] = u;
        }
        if (k == 0) add_code(q, row, s.list, n, s.values);
        const bool last = k + 1 == out.stages;
        const int64_t to = row * m + (last ? 0 : k * out.saved_stride);
        float* const values = (last ? out.values : out.saved_values) + to;
        int64_t* const indices = (last ? out.indices : out.saved_indices) + to;
        select_top_m<Positive>(s.values, n, m, s.scratch, s.chosen, s.selected);
        round_to(out.type, s.selected, m);
        for (int64_t j = 0; j < m; ++j) values[j] = s.selected[j];
        for (int64_t j = 0; j < m; ++j) indices[j] = s.list[s.chosen[j]];
        z = values;
        at = indices;
    }
    return true;
}

}  // namespace deepl0::DEEPL0_ISA
