// int8 products for screen.cpp in vector registers (vpdpbusd), and the packing of their operands.
// For files that are compiled once per ISA level; empty but at level avx512.
//
// A row of x or a unit of W is an offset o and the rest in steps of a scale s, both its own:
// v = o + s k + error, k in [-127, 127]. The offset is the mean where that is most of the vector,
// so that it costs no precision, and else 0, so that zeros stay exact. Where x or W has an offset,
//   x.W = s_x s_W k_x.k_W + n mean(x) mean(W) + errors,
// and where neither has, without the second term. k_x.k_W is exact in int32 up to
// kInt8MostTerms. Packed are 16 rows of x, or 16 units, by quads of terms: [quads, 16, 4], of units
// two such in turn: [quads, 32, 4]. vpdpbusd takes unsigned by signed bytes: units are stored as
// k_W + 128, and the sums start from -128 times the sum of k_x.
#pragma once

#include "screen.h"
#include "simd.h"
#include "sizes.h"
#include "transpose_lanes.h"

#if DEEPL0_X86 && DEEPL0_ISA_LEVEL == 2
#define DEEPL0_HAS_INT8 1
#else
#define DEEPL0_HAS_INT8 0
#endif

namespace deepl0::DEEPL0_ISA {

/// Bytes of a row of x, or of a unit of W.
DEEPL0_INLINE int64_t int8_bytes(int64_t n) { return round_up(n, 4); }

/// What goes before the bytes of a group of units.
struct Int8Units {
    float scale[kScreenGroup], mean[kScreenGroup], offset[kScreenGroup];
};

/// The same of rows, in arrays: n mean(x) goes with the mean of every unit where the row has an
/// offset, else with the offsets of units; and what their sums start from.
struct Int8Rows {
    float *scale = nullptr, *with_mean = nullptr, *with_offset = nullptr;
    int32_t* start = nullptr;
    Int8Rows from(int64_t r) const {
        return {scale + r, with_mean + r, with_offset + r, start + r};
    }
};

/// Sums of squares of vectors: as they are, less their offset, and of what rounding took.
struct Int8Squares {
    float *whole, *centred, *error;
};

#if DEEPL0_HAS_INT8

#define DEEPL0_VNNI __attribute__((noinline, target("avx512vnni")))

/// sum += w x, quads of unsigned by signed bytes. Of the intrinsic gcc 12 makes two copies of every
/// sum in a loop, which take half again as long.
DEEPL0_INLINE void add_quads(I32& sum, I32 w, I32 x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}

/// u[r, 32], r < kRows, = the packed rows from r on times a packed group, plus its bias [32], if
/// any.
template <int kRows>
DEEPL0_VNNI static void int8_rows(const int8_t* x, const Int8Rows& rows, int64_t r,
                                  const void* group, const float* bias, int64_t quads, float* u,
                                  int64_t ld) {
    const auto& units = *static_cast<const Int8Units*>(group);
    const int8_t* xr = x + r / 16 * quads * 64 + r % 16 * 4;
    const auto* w = reinterpret_cast<const uint8_t*>(&units + 1);
    I32 acc[kRows][2];
#pragma GCC unroll 8
    for (int a = 0; a < kRows; ++a) acc[a][0] = acc[a][1] = broadcast(rows.start[r + a]);
    for (int64_t k = 0; k < quads; ++k, xr += 64, w += 128) {
        const I32 w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
        __builtin_prefetch(xr + 1024, 0, 3);  // the rows stream from L2
#pragma GCC unroll 8
        for (int a = 0; a < kRows; ++a) {
            int32_t quad;
            memcpy(&quad, xr + a * 4, sizeof quad);
            const I32 xv = broadcast(quad);
            add_quads(acc[a][0], w0, xv);
            add_quads(acc[a][1], w1, xv);
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
        const F32 scale = load(units.scale + 16 * v), mean = load(units.mean + 16 * v);
        const F32 offset = load(units.offset + 16 * v);
        const F32 base = bias ? load(bias + 16 * v) : zero();
#pragma GCC unroll 8
        for (int a = 0; a < kRows; ++a) {
            const F32 rest = fma(broadcast(rows.with_offset[r + a]), offset,
                                 fma(broadcast(rows.with_mean[r + a]), mean, base));
            const F32 steps_of = _mm512_cvtepi32_ps(acc[a][v]) * scale;
            store(u + (r + a) * ld + 16 * v, fma(steps_of, broadcast(rows.scale[r + a]), rest));
        }
    }
}

/// u[32, 32] (rows of stride ld) = 32 packed rows, of which those beyond some, rounded up, are left
/// out, times a packed group, plus its bias [32], if any.
DEEPL0_INLINE void int8_block(const int8_t* x, const Int8Rows& rows, int64_t some,
                              const void* group, const float* bias, int64_t n, float* u,
                              int64_t ld) {
    const int64_t quads = int8_bytes(n) / 4;
    if (some <= 2) {
        int8_rows<2>(x, rows, 0, group, bias, quads, u, ld);
    } else if (some <= 4) {
        int8_rows<4>(x, rows, 0, group, bias, quads, u, ld);
    } else {
        for (int64_t r = 0; r < some; r += 8) int8_rows<8>(x, rows, r, group, bias, quads, u, ld);
    }
}

/// How a vector is quantised: one that is nearly constant as its offset, one that is not finite as
/// 0.
struct Int8Steps {
    float mean = 0.0f, offset = 0.0f, scale = 0.0f, per_step = 0.0f;
};

/// Adds to whole the squares of v[0..n).
DEEPL0_INLINE Int8Steps int8_steps(const float* v, int64_t n, float* whole) {
    constexpr float kInf = __builtin_inff();
    F32 sum[2] = {zero(), zero()}, squares[2] = {zero(), zero()};
    F32 top = broadcast(-kInf), bottom = broadcast(kInf);
    int64_t k = 0;
    for (; k + 32 <= n; k += 32) {
        for (int h = 0; h < 2; ++h) {
            const F32 a = load(v + k + 16 * h);
            sum[h] = sum[h] + a;
            squares[h] = fma(a, a, squares[h]);
            top = _mm512_max_ps(a, top);
            bottom = _mm512_min_ps(a, bottom);
        }
    }
    for (; k < n; k += 16) {
        const Mask in = first(int(smaller(n - k, 16)));
        const F32 a = _mm512_maskz_loadu_ps(in, v + k);
        sum[0] = sum[0] + a;
        squares[0] = fma(a, a, squares[0]);
        top = _mm512_mask_max_ps(top, in, a, top);
        bottom = _mm512_mask_min_ps(bottom, in, a, bottom);
    }
    *whole = reduce_add(squares[0] + squares[1]);
    const float mean = n > 0 ? reduce_add(sum[0] + sum[1]) / float(n) : 0.0f;
    const float offset = float(n) * mean * mean < 0.5f * *whole ? 0.0f : mean;
    const float above = _mm512_reduce_max_ps(top) - offset;
    const float below = offset - _mm512_reduce_min_ps(bottom);
    const float most = above > below ? above : below;
    if (!(most <= 0x1p61f)) return {};
    if (most < 0x1p-100f) return {mean, offset, 0.0f, 0.0f};
    return {mean, offset, most * (1.0f / 127.0f), 127.0f / most};
}

/// 64 terms of v, those beyond `left` 0, as bytes; adds to the sum of the bytes and to the squares
/// of v - offset and of what rounding took.
DEEPL0_INLINE I32 int8_terms(const float* v, int64_t left, const Int8Steps& q, I32& sum,
                             F32& centred, F32& error) {
    const F32 offset = broadcast(q.offset), scale = broadcast(q.scale);
    I32 k[4];
    for (int i = 0; i < 4; ++i) {
        const Mask in = first(int(larger(0, smaller(left - 16 * i, 16))));
        const F32 d = _mm512_maskz_sub_ps(in, _mm512_maskz_loadu_ps(in, v + 16 * i), offset);
        k[i] = _mm512_cvtps_epi32(d * broadcast(q.per_step));
        const F32 lost = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(k[i]), scale, d);
        sum = add(sum, k[i]);
        centred = fma(d, d, centred);
        error = fma(lost, lost, error);
    }
    const I32 packed =
        _mm512_packs_epi16(_mm512_packs_epi32(k[0], k[1]), _mm512_packs_epi32(k[2], k[3]));
    const I32 order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, packed);
}

/// 16 vectors, those beyond `some` zero: quads of them at a stride of bytes, each byte xor `flip`.
/// q: how each is quantised. Returns the sums of their bytes.
DEEPL0_INLINE I32 pack_int8(const float* v, int64_t ld, int64_t some, int64_t n, uint8_t* out,
                            int64_t stride, int flip, const Int8Squares& squares, Int8Steps* q) {
    F32 centred[16], error[16];
    I32 sum[16];
    for (int64_t i = 0; i < 16; ++i) {
        centred[i] = error[i] = zero();
        sum[i] = _mm512_setzero_si512();
        q[i] = i < some ? int8_steps(v + i * ld, n, squares.whole + i) : Int8Steps{};
    }
    const int64_t quads = int8_bytes(n) / 4;
    for (int64_t k = 0; k < quads; k += 16) {
        I32 b[16];
        for (int64_t i = 0; i < 16; ++i) {
            b[i] = i < some ? int8_terms(v + i * ld + 4 * k, n - 4 * k, q[i], sum[i], centred[i],
                                         error[i])
                            : _mm512_setzero_si512();
            b[i] = _mm512_xor_si512(b[i], _mm512_set1_epi8(char(flip)));
        }
        transpose_lanes(b);
        for (int64_t i = 0; i < smaller(16, quads - k); ++i)
            _mm512_store_si512(out + (k + i) * stride, b[i]);
    }
    for (int64_t i = 0; i < some; ++i) {
        squares.centred[i] = reduce_add(centred[i]);
        squares.error[i] = reduce_add(error[i]);
    }
    transpose_lanes(sum);
    for (int64_t i = 1; i < 16; ++i) sum[0] = add(sum[0], sum[i]);
    return sum[0];
}

/// 16 rows of x, those beyond `rows` zero.
DEEPL0_NOINLINE void pack_int8_rows(const float* x, int64_t ldx, int64_t rows, int64_t n, void* out,
                                    const Int8Rows& to, const Int8Squares& squares) {
    Int8Steps q[16];
    const I32 sums = pack_int8(x, ldx, rows, n, static_cast<uint8_t*>(out), 64, 0, squares, q);
    store(to.start, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7)));
    for (int i = 0; i < 16; ++i) {
        to.scale[i] = q[i].scale;
        const float sum = q[i].mean * float(n);
        to.with_mean[i] = q[i].offset != 0.0f ? sum : 0.0f;
        to.with_offset[i] = q[i].offset != 0.0f ? 0.0f : sum;
    }
}

/// A group of 32 units, those beyond `units` zero.
DEEPL0_NOINLINE void pack_int8_units(const float* w, int64_t ldw, int64_t units, int64_t n,
                                     void* group, const Int8Squares& squares) {
    auto& to = *static_cast<Int8Units*>(group);
    for (int64_t i = 0; i < kScreenGroup; i += 16) {
        Int8Steps q[16];
        pack_int8(w + i * ldw, ldw, smaller(16, larger(0, units - i)), n,
                  reinterpret_cast<uint8_t*>(&to + 1) + i * 4, 128, 0x80,
                  {squares.whole + i, squares.centred + i, squares.error + i}, q);
        for (int j = 0; j < 16; ++j) {
            to.scale[i + j] = q[j].scale;
            to.mean[i + j] = q[j].mean;
            to.offset[i + j] = q[j].offset;
        }
    }
}

#undef DEEPL0_VNNI
#endif

}  // namespace deepl0::DEEPL0_ISA
