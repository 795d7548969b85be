// One vector vocabulary for the three ISA levels, of the native width kLanes (4, 8, 16).
//
// For ISA-compiled files only. Level 0 uses the compiler's generic vectors (SSE2 on x86-64, NEON on
// aarch64). F32 supports the operators + - * / natively; everything else is a named function here.
// load/store take any alignment. *_first(p, n) touches only the first n elements, 0 <= n <= kLanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"
#include "isa.h"

#ifndef DEEPL0_ISA
#error "simd.h is for files compiled once per ISA level"
#endif
#if DEEPL0_ISA_LEVEL > 0
#pragma GCC diagnostic push
// GCC's own _mm512_undefined_* raise these.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace deepl0 {
namespace DEEPL0_ISA {

#if DEEPL0_ISA_LEVEL == 2

constexpr int kLanes = 16;
using F32 = __m512;
using I32 = __m512i;
using Mask = __mmask16;

DEEPL0_INLINE Mask first(int n) { return Mask((1u << n) - 1u); }
DEEPL0_INLINE uint32_t bits(Mask m) { return m; }
DEEPL0_INLINE int count(Mask m) { return __builtin_popcount(m); }
DEEPL0_INLINE Mask mask_and(Mask a, Mask b) { return Mask(a & b); }
DEEPL0_INLINE Mask mask_or(Mask a, Mask b) { return Mask(a | b); }
DEEPL0_INLINE Mask mask_of(uint32_t lane_bits) { return Mask(lane_bits); }

DEEPL0_INLINE F32 broadcast(float x) { return _mm512_set1_ps(x); }
DEEPL0_INLINE I32 broadcast(int32_t x) { return _mm512_set1_epi32(x); }
DEEPL0_INLINE I32 iota() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

DEEPL0_INLINE F32 load(const float* p) { return _mm512_loadu_ps(p); }
DEEPL0_INLINE I32 load(const int32_t* p) { return _mm512_loadu_si512(p); }
DEEPL0_INLINE F32 load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
DEEPL0_INLINE I32 load_first(const int32_t* p, int n) {
    return _mm512_maskz_loadu_epi32(first(n), p);
}
DEEPL0_INLINE void store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
DEEPL0_INLINE void store(int32_t* p, I32 v) { _mm512_storeu_si512(p, v); }
DEEPL0_INLINE void store_first(float* p, F32 v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
DEEPL0_INLINE void store_first(int32_t* p, I32 v, int n) {
    _mm512_mask_storeu_epi32(p, first(n), v);
}
/// base[at] of each lane.
DEEPL0_INLINE F32 gather(const float* base, I32 at) { return _mm512_i32gather_ps(at, base, 4); }

DEEPL0_INLINE F32 widen_half(__m256i h) { return _mm512_cvtph_ps(h); }
DEEPL0_INLINE F32 widen_bfloat16(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
DEEPL0_INLINE __m256i narrow_half(F32 v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
DEEPL0_INLINE __m256i narrow_bfloat16(F32 v) {
    const I32 b = _mm512_castps_si512(v);
    const I32 top = _mm512_srli_epi32(b, 16);
    const I32 even = _mm512_and_si512(top, broadcast(1));
    I32 r = _mm512_srli_epi32(_mm512_add_epi32(b, _mm512_add_epi32(even, broadcast(0x7fff))), 16);
    const Mask nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, top, broadcast(0x40));
    return _mm512_cvtepi32_epi16(r);
}
DEEPL0_INLINE __m256i load16(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
DEEPL0_INLINE __m256i load16_first(const void* p, int n) {
    return _mm256_maskz_loadu_epi16(first(n), p);
}
DEEPL0_INLINE void store16(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
DEEPL0_INLINE void store16_first(void* p, __m256i v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), v);
}

DEEPL0_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
DEEPL0_INLINE F32 abs(F32 v) { return _mm512_abs_ps(v); }
DEEPL0_INLINE float reduce_add(F32 v) { return _mm512_reduce_add_ps(v); }
/// Lanes of v where the mask is set, +0 elsewhere.
DEEPL0_INLINE F32 keep(Mask m, F32 v) { return _mm512_maskz_mov_ps(m, v); }
/// Lanes that max(v, 0) leaves as they are. As integers, -0.0 is the least of all, and numbers
/// ascend from there to -inf, before all NaNs: so subnormals count whatever the mode.
DEEPL0_INLINE Mask not_negative(F32 v) {
    return _mm512_cmpgt_epi32_mask(_mm512_castps_si512(v), broadcast(-0x800000));
}
/// max(v, 0): a NaN stays, -0.0 becomes +0.
DEEPL0_INLINE F32 positive_part(F32 v) { return keep(not_negative(v), v); }

DEEPL0_INLINE I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
DEEPL0_INLINE I32 max(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
DEEPL0_INLINE I32 min(I32 a, I32 b) { return _mm512_min_epi32(a, b); }
DEEPL0_INLINE int32_t reduce_max(I32 v) { return _mm512_reduce_max_epi32(v); }
DEEPL0_INLINE int32_t reduce_min(I32 v) { return _mm512_reduce_min_epi32(v); }
/// Selection key: the bits of |v|. Ordered as |v|, NaNs above inf (see clamp_nan).
DEEPL0_INLINE I32 key(F32 v) {
    return _mm512_and_si512(_mm512_castps_si512(v), broadcast(0x7fffffff));
}
DEEPL0_INLINE Mask ge(I32 a, I32 b) { return _mm512_cmpge_epi32_mask(a, b); }
DEEPL0_INLINE Mask gt(I32 a, I32 b) { return _mm512_cmpgt_epi32_mask(a, b); }
/// Not a < b: also where one is NaN.
DEEPL0_INLINE Mask not_less(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
DEEPL0_INLINE Mask eq(I32 a, I32 b) { return _mm512_cmpeq_epi32_mask(a, b); }

/// Packs the chosen lanes to the front; writes kLanes entries, the rest of them unspecified.
// In a register and then a full store: vpcompress to memory is microcoded on some CPUs.
DEEPL0_INLINE void compress(float* dst, Mask m, F32 v) {
    store(dst, _mm512_maskz_compress_ps(m, v));
}
DEEPL0_INLINE void compress(int32_t* dst, Mask m, I32 v) {
    store(dst, _mm512_maskz_compress_epi32(m, v));
}

/// Sum of set lanes over many masks.
struct Counter {
    int n = 0;
    __attribute__((always_inline)) void add(Mask m) { n += count(m); }
    __attribute__((always_inline)) int total() const { return n; }
};

#elif DEEPL0_ISA_LEVEL == 1

constexpr int kLanes = 8;
using F32 = __m256;
using I32 = __m256i;
using Mask = __m256i;  // all ones or all zeros per lane

DEEPL0_INLINE F32 broadcast(float x) { return _mm256_set1_ps(x); }
DEEPL0_INLINE I32 broadcast(int32_t x) { return _mm256_set1_epi32(x); }
DEEPL0_INLINE I32 iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

DEEPL0_INLINE Mask first(int n) { return _mm256_cmpgt_epi32(broadcast(int32_t(n)), iota()); }
DEEPL0_INLINE uint32_t bits(Mask m) { return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(m))); }
DEEPL0_INLINE int count(Mask m) { return __builtin_popcount(bits(m)); }
DEEPL0_INLINE Mask mask_and(Mask a, Mask b) { return _mm256_and_si256(a, b); }
DEEPL0_INLINE Mask mask_or(Mask a, Mask b) { return _mm256_or_si256(a, b); }
DEEPL0_INLINE Mask mask_of(uint32_t lane_bits) {
    const I32 lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(broadcast(int32_t(lane_bits)), lane), lane);
}

DEEPL0_INLINE F32 load(const float* p) { return _mm256_loadu_ps(p); }
DEEPL0_INLINE I32 load(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
DEEPL0_INLINE F32 load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
DEEPL0_INLINE I32 load_first(const int32_t* p, int n) { return _mm256_maskload_epi32(p, first(n)); }
DEEPL0_INLINE void store(float* p, F32 v) { _mm256_storeu_ps(p, v); }
DEEPL0_INLINE void store(int32_t* p, I32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
DEEPL0_INLINE void store_first(float* p, F32 v, int n) { _mm256_maskstore_ps(p, first(n), v); }
DEEPL0_INLINE void store_first(int32_t* p, I32 v, int n) { _mm256_maskstore_epi32(p, first(n), v); }
// Plain loads: vgatherdps is slow on AVX2 machines, and very slow where mitigations apply.
DEEPL0_INLINE F32 gather(const float* base, I32 at) {
    alignas(32) int32_t i[8];
    store(i, at);
    return _mm256_setr_ps(base[i[0]], base[i[1]], base[i[2]], base[i[3]], base[i[4]], base[i[5]],
                          base[i[6]], base[i[7]]);
}

DEEPL0_INLINE F32 widen_half(__m128i h) { return _mm256_cvtph_ps(h); }
DEEPL0_INLINE F32 widen_bfloat16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
DEEPL0_INLINE __m128i narrow_half(F32 v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
DEEPL0_INLINE __m128i narrow_bfloat16(F32 v) {
    const I32 b = _mm256_castps_si256(v);
    const I32 top = _mm256_srli_epi32(b, 16);
    const I32 even = _mm256_and_si256(top, broadcast(1));
    const I32 rounded =
        _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(even, broadcast(0x7fff))), 16);
    const I32 nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const I32 r = _mm256_blendv_epi8(rounded, _mm256_or_si256(top, broadcast(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
DEEPL0_INLINE __m128i load16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
DEEPL0_INLINE __m128i load16_first(const void* p, int n) {
    __m128i v = _mm_setzero_si128();
    memcpy(&v, p, size_t(n) * 2);
    return v;
}
DEEPL0_INLINE void store16(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
DEEPL0_INLINE void store16_first(void* p, __m128i v, int n) { memcpy(p, &v, size_t(n) * 2); }

DEEPL0_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
DEEPL0_INLINE F32 abs(F32 v) { return _mm256_andnot_ps(broadcast(-0.0f), v); }
DEEPL0_INLINE float reduce_add(F32 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
DEEPL0_INLINE F32 keep(Mask m, F32 v) { return _mm256_and_ps(_mm256_castsi256_ps(m), v); }
DEEPL0_INLINE Mask not_negative(F32 v) {
    return _mm256_cmpgt_epi32(_mm256_castps_si256(v), broadcast(-0x800000));
}
DEEPL0_INLINE F32 positive_part(F32 v) { return keep(not_negative(v), v); }

DEEPL0_INLINE I32 add(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
DEEPL0_INLINE I32 max(I32 a, I32 b) { return _mm256_max_epi32(a, b); }
DEEPL0_INLINE I32 min(I32 a, I32 b) { return _mm256_min_epi32(a, b); }
DEEPL0_INLINE int32_t reduce_max(I32 v) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
DEEPL0_INLINE int32_t reduce_min(I32 v) {
    __m128i s = _mm_min_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_min_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_min_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
DEEPL0_INLINE I32 key(F32 v) {
    return _mm256_and_si256(_mm256_castps_si256(v), broadcast(0x7fffffff));
}
DEEPL0_INLINE Mask gt(I32 a, I32 b) { return _mm256_cmpgt_epi32(a, b); }
DEEPL0_INLINE Mask not_less(F32 a, F32 b) {
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}
DEEPL0_INLINE Mask eq(I32 a, I32 b) { return _mm256_cmpeq_epi32(a, b); }
DEEPL0_INLINE Mask ge(I32 a, I32 b) { return eq(max(a, b), a); }

/// Row i holds, byte by byte, the positions of the set bits of i.
struct CompressTable {
    uint8_t lane[256][8];
};
constexpr CompressTable make_compress_table() {
    CompressTable t{};
    for (int i = 0; i < 256; ++i) {
        int n = 0;
        for (int bit = 0; bit < 8; ++bit) {
            if (i >> bit & 1) t.lane[i][n++] = uint8_t(bit);
        }
    }
    return t;
}
static constexpr CompressTable kCompress = make_compress_table();

DEEPL0_INLINE I32 compress_order(Mask m) {
    const auto* row = reinterpret_cast<const __m128i*>(kCompress.lane[bits(m)]);
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(row));
}
DEEPL0_INLINE void compress(float* dst, Mask m, F32 v) {
    store(dst, _mm256_permutevar8x32_ps(v, compress_order(m)));
}
DEEPL0_INLINE void compress(int32_t* dst, Mask m, I32 v) {
    store(dst, _mm256_permutevar8x32_epi32(v, compress_order(m)));
}

struct Counter {
    I32 n = _mm256_setzero_si256();
    __attribute__((always_inline)) void add(Mask m) { n = _mm256_sub_epi32(n, m); }
    __attribute__((always_inline)) int total() const {
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
    }
};

#else

constexpr int kLanes = 4;
typedef float F32 __attribute__((vector_size(16)));
typedef int32_t I32 __attribute__((vector_size(16)));
using Mask = I32;  // all ones or all zeros per lane

DEEPL0_INLINE F32 broadcast(float x) { return F32{x, x, x, x}; }
DEEPL0_INLINE I32 broadcast(int32_t x) { return I32{x, x, x, x}; }
DEEPL0_INLINE I32 iota() { return I32{0, 1, 2, 3}; }

DEEPL0_INLINE Mask first(int n) { return broadcast(int32_t(n)) > iota(); }
DEEPL0_INLINE uint32_t bits(Mask m) {
    const I32 b = m & I32{1, 2, 4, 8};
    return uint32_t(b[0] | b[1] | b[2] | b[3]);
}
DEEPL0_INLINE int count(Mask m) { return -(m[0] + m[1] + m[2] + m[3]); }
DEEPL0_INLINE Mask mask_and(Mask a, Mask b) { return a & b; }
DEEPL0_INLINE Mask mask_or(Mask a, Mask b) { return a | b; }
DEEPL0_INLINE Mask mask_of(uint32_t lane_bits) {
    const I32 lane{1, 2, 4, 8};
    return (broadcast(int32_t(lane_bits)) & lane) == lane;
}

DEEPL0_INLINE F32 load_first(const float* p, int n) {
    F32 v = broadcast(0.0f);
    memcpy(&v, p, size_t(n) * 4);
    return v;
}
DEEPL0_INLINE I32 load_first(const int32_t* p, int n) {
    I32 v = broadcast(int32_t(0));
    memcpy(&v, p, size_t(n) * 4);
    return v;
}
DEEPL0_INLINE void store_first(float* p, F32 v, int n) { memcpy(p, &v, size_t(n) * 4); }
DEEPL0_INLINE void store_first(int32_t* p, I32 v, int n) { memcpy(p, &v, size_t(n) * 4); }
DEEPL0_INLINE F32 load(const float* p) { return load_first(p, kLanes); }
DEEPL0_INLINE I32 load(const int32_t* p) { return load_first(p, kLanes); }
DEEPL0_INLINE void store(float* p, F32 v) { store_first(p, v, kLanes); }
DEEPL0_INLINE void store(int32_t* p, I32 v) { store_first(p, v, kLanes); }

DEEPL0_INLINE F32 gather(const float* base, I32 at) {
    return F32{base[at[0]], base[at[1]], base[at[2]], base[at[3]]};
}

/// No hardware fma is assumed at this level: the product is rounded.
DEEPL0_INLINE F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
DEEPL0_INLINE F32 abs(F32 v) { return F32(I32(v) & broadcast(int32_t(0x7fffffff))); }
DEEPL0_INLINE float reduce_add(F32 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
DEEPL0_INLINE F32 keep(Mask m, F32 v) { return F32(I32(v) & m); }
DEEPL0_INLINE Mask not_negative(F32 v) { return I32(v) > broadcast(-0x800000); }
DEEPL0_INLINE F32 positive_part(F32 v) { return keep(not_negative(v), v); }

DEEPL0_INLINE I32 add(I32 a, I32 b) { return a + b; }
DEEPL0_INLINE Mask ge(I32 a, I32 b) { return a >= b; }
DEEPL0_INLINE Mask gt(I32 a, I32 b) { return a > b; }
DEEPL0_INLINE Mask not_less(F32 a, F32 b) { return ~(a < b); }
DEEPL0_INLINE Mask eq(I32 a, I32 b) { return a == b; }
DEEPL0_INLINE I32 max(I32 a, I32 b) {
    const I32 m = a > b;
    return (a & m) | (b & ~m);
}
DEEPL0_INLINE I32 min(I32 a, I32 b) {
    const I32 m = a < b;
    return (a & m) | (b & ~m);
}
DEEPL0_INLINE int32_t reduce_max(I32 v) {
    const int32_t a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}
DEEPL0_INLINE int32_t reduce_min(I32 v) {
    const int32_t a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
    return a < b ? a : b;
}
DEEPL0_INLINE I32 key(F32 v) { return I32(v) & broadcast(int32_t(0x7fffffff)); }

template <typename T, typename V>
DEEPL0_INLINE void compress_lanes(T* dst, Mask m, V v) {
    int n = 0;
    for (int i = 0; i < kLanes; ++i) {
        dst[n] = v[i];
        n -= m[i];
    }
}
DEEPL0_INLINE void compress(float* dst, Mask m, F32 v) { compress_lanes(dst, m, v); }
DEEPL0_INLINE void compress(int32_t* dst, Mask m, I32 v) { compress_lanes(dst, m, v); }

struct Counter {
    I32 n = {0, 0, 0, 0};
    __attribute__((always_inline)) void add(Mask m) { n -= m; }
    __attribute__((always_inline)) int total() const { return n[0] + n[1] + n[2] + n[3]; }
};

#endif

DEEPL0_INLINE F32 zero() { return broadcast(0.0f); }
DEEPL0_INLINE bool any(Mask m) { return bits(m) != 0; }

/// What a selection compares and returns: v, or its positive part.
template <bool Positive>
DEEPL0_INLINE F32 candidate(F32 v) {
    return Positive ? positive_part(v) : v;
}

/// Its key (see clamp_nan).
template <bool Positive>
DEEPL0_INLINE I32 key_of(F32 v) {
#if DEEPL0_ISA_LEVEL == 2
    if (Positive)  // one instruction less than the key of the part
        return _mm512_maskz_and_epi32(not_negative(v), _mm512_castps_si512(v),
                                      broadcast(0x7fffffff));
#endif
    return key(candidate<Positive>(v));
}

/// All NaN keys become one, directly above the key of inf.
constexpr int32_t kNanKey = 0x7f800001;
DEEPL0_INLINE I32 clamp_nan(I32 k) { return min(k, broadcast(kNanKey)); }

// 16-bit storage, widened to float and rounded to nearest even on the way back.
#if DEEPL0_ISA_LEVEL > 0
DEEPL0_INLINE F32 load(const half* p) { return widen_half(load16(p)); }
DEEPL0_INLINE F32 load(const bfloat16* p) { return widen_bfloat16(load16(p)); }
DEEPL0_INLINE F32 load_first(const half* p, int n) { return widen_half(load16_first(p, n)); }
DEEPL0_INLINE F32 load_first(const bfloat16* p, int n) {
    return widen_bfloat16(load16_first(p, n));
}
DEEPL0_INLINE void store(half* p, F32 v) { store16(p, narrow_half(v)); }
DEEPL0_INLINE void store(bfloat16* p, F32 v) { store16(p, narrow_bfloat16(v)); }
DEEPL0_INLINE void store_first(half* p, F32 v, int n) { store16_first(p, narrow_half(v), n); }
DEEPL0_INLINE void store_first(bfloat16* p, F32 v, int n) {
    store16_first(p, narrow_bfloat16(v), n);
}
#else
template <typename T>
DEEPL0_INLINE F32 load_first(const T* p, int n) {
    F32 v = zero();
    for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
    return v;
}
template <typename T>
DEEPL0_INLINE void store_first(T* p, F32 v, int n) {
    for (int i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}
DEEPL0_INLINE F32 load(const half* p) { return load_first(p, kLanes); }
DEEPL0_INLINE F32 load(const bfloat16* p) { return load_first(p, kLanes); }
DEEPL0_INLINE void store(half* p, F32 v) { store_first(p, v, kLanes); }
DEEPL0_INLINE void store(bfloat16* p, F32 v) { store_first(p, v, kLanes); }
#endif

template <typename T>
DEEPL0_INLINE void round_through(float* z, int64_t n) {
    T narrow[kLanes];
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        store(narrow, load(z + i));
        store(z + i, load(narrow));
    }
    for (; i < n; ++i) z[i] = to_float(from_float<T>(z[i]));
}

/// z [n] rounded to nearest even where `type` is a half type, in place.
DEEPL0_INLINE void round_to(DType type, float* z, int64_t n) {
    if (type == DType::f16) round_through<half>(z, n);
    if (type == DType::bf16) round_through<bfloat16>(z, n);
}

}  // namespace DEEPL0_ISA
}  // namespace deepl0
