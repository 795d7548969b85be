// bf16 products for screen.cpp, on AMX tiles or in vector registers (vdpbf16ps), and the packing of
// their operands. For files that are compiled once per ISA level; empty but at level avx512 on
// Linux.
//
// Operands are rounded to nearest even, subnormals to zero, as both would take them. An A tile
// holds 16 rows of x by 32 terms; a B tile the same 32 terms of 16 units, as 16 rows of pairs of
// terms, each of which is a vector operand. All tiles are contiguous kilobytes, those of one row
// block one after the other.
#pragma once

#include "simd.h"
#include "transpose_lanes.h"

#if DEEPL0_X86 && DEEPL0_ISA_LEVEL == 2 && defined(__linux__)
#define DEEPL0_HAS_BF16 1
#else
#define DEEPL0_HAS_BF16 0
#endif

#if DEEPL0_HAS_BF16
namespace deepl0 {
namespace DEEPL0_ISA {

#define DEEPL0_AMX __attribute__((noinline, target("amx-tile,amx-bf16")))
#define DEEPL0_BF16 __attribute__((noinline, target("avx512bf16")))

/// Eight tiles of 16 rows by 64 bytes, for the calling thread until amx_end.
DEEPL0_AMX static void amx_begin() {
    struct alignas(64) {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
        config.bytes[t] = 64;
        config.rows[t] = 16;
    }
    asm volatile("" ::"r"(&config) : "memory");  // gcc 12 does not see what the next line reads
    _tile_loadconfig(&config);
}

DEEPL0_AMX static void amx_end() { _tile_release(); }

/// u[32, 32] (rows of stride ld) = 32 rows of x times a group of 32 units, 32 steps terms, plus
/// its bias [32], if any.
DEEPL0_AMX static void amx_block(const uint16_t* x, const uint16_t* w, const float* bias,
                                 int64_t steps, float* u, int64_t ld) {
    const uint16_t* const x1 = x + steps * 512;
    asm volatile("" ::: "memory");  // nor what the tile loads read
    if (bias) {                     // in every row
        _tile_loadd(0, bias, 0);
        _tile_loadd(1, bias + 16, 0);
        _tile_loadd(2, bias, 0);
        _tile_loadd(3, bias + 16, 0);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < steps; ++k) {
        _tile_loadd(4, x + k * 512, 64);
        _tile_loadd(6, w + k * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + k * 1024 + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x1 + k * 512, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, u, ld * 4);
    _tile_stored(1, u + 16, ld * 4);
    _tile_stored(2, u + 16 * ld, ld * 4);
    _tile_stored(3, u + 16 * ld + 16, ld * 4);
}

/// The same in vector registers: 8 rows at a time, two vectors of units; of the rows beyond some,
/// rounded up to 8, nothing.
DEEPL0_BF16 static void vector_block(const uint16_t* x, int64_t some, const uint16_t* w,
                                     const float* bias, int64_t steps, float* u, int64_t ld) {
    constexpr int kRows = 8, kPairs = 16;
    for (int64_t r = 0; r < some; r += kRows) {
        const uint16_t* const xr = x + r / 16 * steps * 512 + r % 16 * 32;
        F32 acc[kRows][2];
        for (int a = 0; a < kRows; ++a) {
            acc[a][0] = bias ? load(bias) : zero();
            acc[a][1] = bias ? load(bias + 16) : zero();
        }
        for (int64_t k = 0; k < steps; ++k) {
            for (int i = 0; i < kPairs; ++i) {
                const auto w0 = (__m512bh)_mm512_load_si512(w + k * 1024 + i * 32);
                const auto w1 = (__m512bh)_mm512_load_si512(w + k * 1024 + i * 32 + 512);
#pragma GCC unroll 8
                for (int a = 0; a < kRows; ++a) {
                    int32_t pair;
                    memcpy(&pair, xr + k * 512 + a * 32 + i * 2, sizeof pair);
                    const auto xv = (__m512bh)_mm512_set1_epi32(pair);
                    acc[a][0] = _mm512_dpbf16_ps(acc[a][0], w0, xv);
                    acc[a][1] = _mm512_dpbf16_ps(acc[a][1], w1, xv);
                }
            }
        }
        for (int a = 0; a < kRows; ++a) {
            store(u + (r + a) * ld, acc[a][0]);
            store(u + (r + a) * ld + 16, acc[a][1]);
        }
    }
}

/// The 16 pairs of terms of x[0..n), n <= 32, rounded; adds to the squares of what was and of what
/// the rounding took.
#define DEEPL0_ROUND_TERMS(pairs, x, left, whole, error)                              \
    do {                                                                              \
        const int left_ = (left);                                                     \
        const __mmask16 low_ = first(left_ < 16 ? left_ : 16);                        \
        const __mmask16 high_ = first(left_ < 16 ? 0 : left_ < 32 ? left_ - 16 : 16); \
        const F32 a_ = _mm512_maskz_loadu_ps(low_, (x));                              \
        const F32 b_ = _mm512_maskz_loadu_ps(high_, (x) + 16);                        \
        pairs = (__m512i)_mm512_cvtne2ps_pbh(b_, a_);                                 \
        const F32 da_ = a_ - widen_bfloat16(_mm512_castsi512_si256(pairs));           \
        const F32 db_ = b_ - widen_bfloat16(_mm512_extracti64x4_epi64(pairs, 1));     \
        whole = fma(b_, b_, fma(a_, a_, whole));                                      \
        error = fma(db_, db_, fma(da_, da_, error));                                  \
    } while (0)

/// 16 rows of x, those beyond `rows` zero, to A tiles; sums of squares of the rows and of their
/// rounding errors.
DEEPL0_BF16 static void pack_rows(const float* x, int64_t ldx, int64_t rows, int64_t n,
                                  uint16_t* tiles, float* whole, float* error) {
    const int64_t steps = (n + 31) / 32;
    for (int64_t r = 0; r < 16; ++r) {
        F32 squares = zero(), lost = zero();
        for (int64_t k = 0; k < steps; ++k) {
            __m512i pairs = _mm512_setzero_si512();
            if (r < rows) {
                const int64_t left = n - 32 * k;
                DEEPL0_ROUND_TERMS(pairs, x + r * ldx + 32 * k, int(left < 32 ? left : 32), squares,
                                   lost);
            }
            _mm512_store_si512(tiles + k * 512 + r * 32, pairs);
        }
        if (r < rows) {
            whole[r] = reduce_add(squares);
            error[r] = reduce_add(lost);
        }
    }
}

/// A group of 32 units, those beyond `units` zero, to B tiles, likewise.
DEEPL0_BF16 static void pack_units(const float* w, int64_t ldw, int64_t units, int64_t n,
                                   uint16_t* tiles, float* whole, float* error) {
    const int64_t steps = (n + 31) / 32;
    for (int64_t half = 0; half < 2; ++half) {
        F32 squares[16], lost[16];
        for (int i = 0; i < 16; ++i) squares[i] = lost[i] = zero();
        for (int64_t k = 0; k < steps; ++k) {
            const int64_t left = n - 32 * k;
            __m512i v[16];
            for (int64_t i = 0; i < 16; ++i) {
                v[i] = _mm512_setzero_si512();
                if (half * 16 + i >= units) continue;
                DEEPL0_ROUND_TERMS(v[i], w + (half * 16 + i) * ldw + 32 * k,
                                   int(left < 32 ? left : 32), squares[i], lost[i]);
            }
            transpose_lanes(v);
            for (int i = 0; i < 16; ++i)
                _mm512_store_si512(tiles + k * 1024 + half * 512 + i * 32, v[i]);
        }
        for (int64_t i = 0; i < 16 && half * 16 + i < units; ++i) {
            whole[half * 16 + i] = reduce_add(squares[i]);
            error[half * 16 + i] = reduce_add(lost[i]);
        }
    }
}

#undef DEEPL0_ROUND_TERMS
#undef DEEPL0_AMX
#undef DEEPL0_BF16

}  // namespace DEEPL0_ISA
}  // namespace deepl0
#endif
