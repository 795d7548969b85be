// Operands of the approximations: W and rows of x, packed, with the norms that the bound wants.
// bf16 tiles: screen_bf16.h; int8 blocks: screen_int8.h. For files that are compiled once per ISA
// level.
#pragma once

#include "screen.h"
#include "screen_bf16.h"
#include "screen_bound.h"
#include "screen_int8.h"

namespace deepl0::DEEPL0_ISA {

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

/// u[32, 32] (rows of stride ld) = 32 packed rows, of which those beyond some - rounded up to 8 -
/// are left out, times a packed group, plus its bias [32], if any.
DEEPL0_NOINLINE void float32_block(const float* x, int64_t some, const float* w, const float* bias,
                                   int64_t n, float* u, int64_t ld) {
    constexpr int kR = DEEPL0_ISA_LEVEL == 2 ? 8 : 4, kV = 2;
    for (int64_t r = 0; r < some; r += kR) {
        const float* xr = x + r / kBlockRows * kBlockRows * n + r % kBlockRows;
        for (int64_t i = 0; i < kScreenGroup; i += kV * kLanes) {
            F32 acc[kR][kV];
            for (int a = 0; a < kR; ++a)
                for (int v = 0; v < kV; ++v)
                    acc[a][v] = bias ? load(bias + i + v * kLanes) : zero();
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

DEEPL0_INLINE bool is_bf16(ScreenKind kind) {
    return kind == ScreenKind::bfloat16_vectors || kind == ScreenKind::bfloat16_tiles;
}

DEEPL0_INLINE bool uses_tiles(const ScreenProblem& q) {
    return q.kind == ScreenKind::bfloat16_tiles;
}

/// A packed row of x.
DEEPL0_INLINE int64_t bytes_of_row(ScreenKind kind, int64_t n) {
    if (kind == ScreenKind::int8_vectors) return int8_bytes(n);
    return is_bf16(kind) ? round_up(n, 32) * 2 : n * 4;
}

/// Packed W: norms and errors per unit and their maxima per group, the bias and what it adds to the
/// bound, then the groups.
struct Packed {
    float *norm = nullptr, *error = nullptr;              // of padding units -inf and 0
    float *group_norm = nullptr, *group_error = nullptr;  // of real units
    float *bias = nullptr, *group_slack = nullptr;        // 0 without a bias
    char* data = nullptr;
    int64_t groups = 0, group_bytes = 0;

    static int64_t bytes_of_group(ScreenKind kind, int64_t n) {
        const bool int8 = kind == ScreenKind::int8_vectors;
        return (int8 ? int64_t(sizeof(Int8Units)) : 0) + kScreenGroup * bytes_of_row(kind, n);
    }
    Packed(const void* packed, ScreenKind kind, int64_t p, int64_t n) {
        if (!packed) return;
        groups = (p + kScreenGroup - 1) / kScreenGroup;
        group_bytes = bytes_of_group(kind, n);
        norm = static_cast<float*>(const_cast<void*>(packed));
        error = norm + groups * kScreenGroup;
        group_norm = error + groups * kScreenGroup;
        group_error = group_norm + round_up(groups, 16);
        group_slack = group_error + round_up(groups, 16);
        bias = group_slack + round_up(groups, 16);
        data = reinterpret_cast<char*>(bias + groups * kScreenGroup);
    }
    static int64_t bytes(ScreenKind kind, int64_t p, int64_t n) {
        const int64_t groups = (p + kScreenGroup - 1) / kScreenGroup;
        return 12 * (groups * kScreenGroup + round_up(groups, 16)) +
               groups * bytes_of_group(kind, n);
    }
    void* group(int64_t g) const { return data + g * group_bytes; }
};

/// ScreenKernels::pack.
DEEPL0_NOINLINE void pack(ScreenKind kind, const float* w, int64_t ldw, const float* bias,
                          int64_t p, int64_t n, int64_t begin, int64_t end, void* packed) {
    const Packed out(packed, kind, p, n);
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
        if (is_bf16(kind))
            pack_units(rows, ldw, units, n, static_cast<uint16_t*>(out.group(g)), squares, lost);
#endif
#if DEEPL0_HAS_INT8
        float centred[kScreenGroup] = {};
        if (kind == ScreenKind::int8_vectors)
            pack_int8_units(rows, ldw, units, n, out.group(g), {squares, centred, lost});
#endif
        if (kind == ScreenKind::float32)
            pack_columns(rows, ldw, units, n, static_cast<float*>(out.group(g)), squares);
        for (int64_t i = 0; i < units; ++i) {
            norm[i] = norm_bound(squares[i], n);
            error[i] = kind != ScreenKind::float32 ? norm_bound(lost[i], n) : 0.0f;
#if DEEPL0_HAS_INT8
            if (kind == ScreenKind::int8_vectors && norm[i] <= kLargest)
                norm[i] = int8_norm(norm_bound(centred[i], n), norm[i]);
#endif
        }
        float most_norm = 0.0f, most_error = 0.0f, most_bias = 0.0f;
        for (int64_t i = 0; i < kScreenGroup; ++i) {
            const float b = bias && i < units ? bias[first_unit + i] : 0.0f;
            const float size = __builtin_fabsf(b);
            const bool bounded = size <= kLargest;
            out.bias[first_unit + i] = bounded ? b : 0.0f;
            most_bias = bounded && size > most_bias ? size : most_bias;
            if (!bounded) norm[i] = __builtin_inff();
        }
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
        out.group_slack[g] = summation_factor(n) * most_bias;
    }
}

}  // namespace deepl0::DEEPL0_ISA
