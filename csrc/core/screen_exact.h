// Exact values of units, and what they say of a row's candidates. For files that are compiled once
// per ISA level.
#pragma once

#include "screen_panel.h"

namespace deepl0::DEEPL0_ISA {

/// Adds to the dot products of the units [unit, unit + units) of a row what else is in u.
DEEPL0_INLINE void add_rest(const ScreenProblem& q, int64_t row, int64_t unit, int64_t units,
                            float* u) {
    if (q.bias)
        for (int64_t i = 0; i < units; ++i) u[i] += q.bias[unit + i];
    const int64_t* at = q.z_indices + row * q.z_m;
    for (int64_t j = 0; j < q.z_m; ++j)
        if (unit <= at[j] && at[j] < unit + units) u[at[j] - unit] += q.z_values[row * q.z_m + j];
}

/// The same for units in ascending order.
DEEPL0_INLINE void add_rest(const ScreenProblem& q, int64_t row, const int32_t* unit, int64_t n,
                            float* u) {
    if (q.bias)
        for (int64_t i = 0; i < n; ++i) u[i] += q.bias[unit[i]];
    add_code(q, row, unit, n, u);
}

DEEPL0_INLINE void fetch_row(const float* w, int64_t n) {
    for (int64_t k = 0; k < n; k += 16) __builtin_prefetch(w + k, 0, 3);
}

/// u of n units of row r, ascending.
DEEPL0_NOINLINE void compute(Panel& s, int64_t r, const int32_t* unit, int64_t n, float* u) {
    const ScreenProblem& q = s.q;
    const float* const x = q.x + (s.begin + r) * q.ldx;
    constexpr int64_t kAhead = 8;  // units on their way from memory
    int64_t i = 0;
    for (; i < smaller(kAhead, n); ++i) fetch_row(q.w + unit[i] * q.ldw, q.n);
    for (i = 0; i + 4 <= n; i += 4) {
        for (int64_t a = i + kAhead; a < smaller(i + kAhead + 4, n); ++a)
            fetch_row(q.w + unit[a] * q.ldw, q.n);
        const float* const w[4] = {q.w + unit[i] * q.ldw, q.w + unit[i + 1] * q.ldw,
                                   q.w + unit[i + 2] * q.ldw, q.w + unit[i + 3] * q.ldw};
        dots(x, w, q.n, u + i);
    }
    for (; i < n; ++i) {
        const float* const w[1] = {q.w + unit[i] * q.ldw};
        dots(x, w, q.n, u + i);
    }
    s.counts.rescored += n;
    if (q.bias || q.z_m > 0) add_rest(q, s.begin + r, unit, n, u);
    for (i = 0; i < n && s.positive; ++i) u[i] = u[i] <= 0.0f ? 0.0f : u[i];
}

/// Some candidates of a row: their units, their places among its candidates, their values.
struct Chosen {
    int32_t *unit, *at;
    float* u;
    int64_t n = 0;
};

/// Computes the candidates of row r for which keep(lo, hi) holds.
template <class Keep>
DEEPL0_INLINE void compute(Panel& s, int64_t r, Chosen& to, Keep keep_lanes) {
    const Candidates from = s.of(r);
    const int64_t n = s.count[r];
    for (int64_t i = 0; i < n; i += kLanes) {
        const Mask in = mask_and(keep_lanes(load(from.lo + i), load(from.hi + i)),
                                 first(int(smaller(n - i, kLanes))));
        compress(to.unit + to.n, in, load(from.unit + i));
        compress(to.at + to.n, in, add(iota(), broadcast(int32_t(i))));
        to.n += count(in);
    }
    compute(s, r, to.unit, to.n, to.u);
}

constexpr int32_t kInfKey = 0x7f800000;

/// Computes the candidates of row r that are surely >= least, and raises least to the smallest of
/// them where they are m.
DEEPL0_INLINE Chosen compute_best(Panel& s, int64_t r) {
    const int64_t room = s.layout.capacity + 64;
    Chosen best{s.chosen, s.chosen + room, s.values};
    const int32_t least = bits_of(s.least[r]);
    compute(s, r, best, [&](I32 lo, I32) { return ge(lo, broadcast(least)); });
    if (best.n < s.m) return best;
    int32_t smallest = kInfKey;
    for (int64_t i = 0; i < best.n; ++i) {
        const int32_t k = bits_of(best.u[i]) & 0x7fffffff;
        smallest = k < smallest ? k : smallest;
    }
    if (smallest > least && smallest < kInfKey) s.least[r] = bit_cast<float>(smallest);
    return best;
}

}  // namespace deepl0::DEEPL0_ISA
