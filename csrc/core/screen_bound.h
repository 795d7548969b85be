// What screening promises of its numbers: the dot product that defines u, and the bound of what an
// approximation may differ from it. For files that are compiled once per ISA level.
#pragma once

#include "simd.h"
#include "sizes.h"

namespace deepl0::DEEPL0_ISA {

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

// The bound. With xb, Wb the rounded operands and all norms Euclidean,
//   |x.W - xb.Wb| <= |x - xb| |W| + |xb| |W - Wb|,
// and the roundings of the approximation, of the exact dot product and of the comparisons come to
// less than c |x| |W| with c = (3 n + 128) 2^-24, whatever the order of summation. What underflows
// or is flushed to zero adds less than (4 n + 64) 2^-126. So
//   e = A |W| + C |W - Wb| + tiny,   A = |x - xb| + c |x|,   C = |xb|,
// with norms rounded up. The sums of the approximation start from b, and z is added to them: with
// b or z not 0, e has c |b| and 2^-20 |z| more. Nothing overflows while |x|, |W| <= 2^60; units
// beyond that have an infinite norm here, hence an infinite bound, as have those with |b| beyond
// it; rows of x or z beyond it are not screened.

//
// int8: x' = x - offset, W' likewise; each offset is the mean o or 0. As the sum of x' is that of x
// less n times its offset,
//   x.W = x'.W' + n o(x) o(W)   if one of them has an offset, x.W = x'.W' if none has,
// and |x'.W' - xq.Wq| <= |x' - xq| |W'| + |xq| |W' - Wq|. The roundings, those of the means
// included, come to less than (n / 4 + 64) 2^-24 |x| |W|. Of W the bound sees N = max(|W'|, |W| /
// 8) alone:
//   e = A N + C |W' - Wq| + tiny,   A = |x' - xq| + 8 (n / 4 + 64) 2^-24 |x|,   C = |xq|.

constexpr float kLargest = 0x1p60f;

DEEPL0_INLINE float summation_factor(int64_t n) { return float(3 * n + 128) * 0x1p-24f; }
DEEPL0_INLINE float int8_summation_factor(int64_t n) { return float(2 * n + 512) * 0x1p-24f; }
/// N of a unit.
DEEPL0_INLINE float int8_norm(float centred, float whole) {
    return centred > 0.125f * whole ? centred : 0.125f * whole;
}
DEEPL0_INLINE float underflow_term(int64_t n) { return float(4 * n + 64) * 0x1p-126f; }

/// At least the norm, from a float sum of n squares of any order, some of them underflowed.
DEEPL0_INLINE float norm_bound(float squares, int64_t n) {
    const float inflate = 1.0f + float(n + 64) * 0x1p-23f;
    const float s = squares * inflate + float(n + 1) * 0x1p-125f;
    return __builtin_sqrtf(s) * (1.0f + 0x1p-21f);
}

}  // namespace deepl0::DEEPL0_ISA
