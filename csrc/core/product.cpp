#include "product.h"

#include "kernel_table.h"
#include "simd.h"
#include "sizes.h"
#include "transpose.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

#if DEEPL0_ISA_LEVEL == 2
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;

/// Terms of a packed block: a group of it stays in L1.
constexpr int64_t kTerms = 256;
/// Rows for which a group is used while it is there; their x and out stay in L2.
constexpr int64_t kRowBlock = 64;

DEEPL0_INLINE int64_t groups_of(int64_t p) { return (p + kProductGroup - 1) / kProductGroup; }

/// Group g of the terms from k on, [terms, 32].
DEEPL0_INLINE int64_t packed_at(int64_t groups, int64_t g, int64_t k, int64_t terms) {
    return (k * groups + g * terms) * kProductGroup;
}

void pack(const float* w, int64_t ldw, int64_t p, int64_t n, int64_t begin, int64_t end,
          float* packed) {
    const int64_t groups = groups_of(p);
    for (int64_t k = 0; k < n; k += kTerms) {
        const int64_t terms = smaller(kTerms, n - k);
        for (int64_t g = begin; g < end; ++g) {
            const int64_t unit = g * kProductGroup, units = smaller(kProductGroup, p - unit);
            float* out = packed + packed_at(groups, g, k, terms);
            transpose(w + unit * ldw + k, ldw, units, terms, out, kProductGroup);
            for (int64_t t = 0; t < terms; ++t)
                for (int64_t i = units; i < kProductGroup; ++i) out[t * kProductGroup + i] = 0.0f;
        }
    }
}

/// out = base + x w: kTileRows rows, of which the first `rows` are written, by a group. base
/// (stride ldb) may be null, or out.
DEEPL0_INLINE void tile(const float* x, int64_t ldx, int64_t rows, const float* w, int64_t terms,
                        const float* base, int64_t ldb, float* out, int64_t ldo) {
    const float* xr[kTileRows];
    for (int a = 0; a < kTileRows; ++a) xr[a] = x + (a < rows ? a : 0) * ldx;
    for (int64_t i = 0; i < kProductGroup; i += kTileVectors * kLanes) {
        F32 acc[kTileRows][kTileVectors];
        for (int a = 0; a < kTileRows; ++a)
            for (int v = 0; v < kTileVectors; ++v)
                acc[a][v] = base && a < rows ? load(base + a * ldb + i + v * kLanes) : zero();
        for (int64_t k = 0; k < terms; ++k) {
            F32 wv[kTileVectors];
            for (int v = 0; v < kTileVectors; ++v)
                wv[v] = load(w + k * kProductGroup + i + v * kLanes);
#pragma GCC unroll 8
            for (int a = 0; a < kTileRows; ++a) {
                const F32 xv = broadcast(xr[a][k]);
                for (int v = 0; v < kTileVectors; ++v) acc[a][v] = fma(xv, wv[v], acc[a][v]);
            }
        }
        for (int a = 0; a < kTileRows; ++a)
            for (int v = 0; v < kTileVectors && a < rows; ++v)
                store(out + a * ldo + i + v * kLanes, acc[a][v]);
    }
}

void product(const float* x, int64_t ldx, int64_t rows, const float* packed, int64_t p, int64_t n,
             const float* bias, float* out, int64_t ldo) {
    const int64_t groups = groups_of(p);
    alignas(64) float edge[kTileRows * kProductGroup];
    if (n == 0)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < p; ++i) out[r * ldo + i] = bias ? bias[i] : 0.0f;
    for (int64_t b = 0; b < rows; b += kRowBlock) {
        const int64_t last = smaller(b + kRowBlock, rows);
        for (int64_t k = 0; k < n; k += kTerms) {
            const int64_t terms = smaller(kTerms, n - k);
            for (int64_t g = 0; g < groups; ++g) {
                const float* w = packed + packed_at(groups, g, k, terms);
                const int64_t unit = g * kProductGroup, units = smaller(kProductGroup, p - unit);
                for (int64_t r = b; r < last; r += kTileRows) {
                    const int64_t some = smaller(kTileRows, last - r);
                    const float* xr = x + r * ldx + k;
                    float* to = out + r * ldo + unit;
                    const float* base = k > 0 ? to : bias ? bias + unit : nullptr;
                    const int64_t ldb = k > 0 ? ldo : 0;
                    if (units == kProductGroup) {
                        tile(xr, ldx, some, w, terms, base, ldb, to, ldo);
                        continue;
                    }
                    for (int64_t a = 0; a < some && base; ++a)
                        memcpy(edge + a * kProductGroup, base + a * ldb, size_t(units) * 4);
                    tile(xr, ldx, some, w, terms, base ? edge : nullptr, kProductGroup, edge,
                         kProductGroup);
                    for (int64_t a = 0; a < some; ++a)
                        memcpy(to + a * ldo, edge + a * kProductGroup, size_t(units) * 4);
                }
            }
        }
    }
}

}  // namespace

extern const ProductKernels product_table;
const ProductKernels product_table = {pack, product};

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLE(ProductKernels, product)

bool product_pays() {
#if DEEPL0_X86
    return active_isa() == Isa::avx512 && __builtin_cpu_is("amd");
#else
    return false;
#endif
}

bool product_pays(int64_t rows, int64_t weights) {
#if DEEPL0_X86
    if (active_isa() == Isa::avx512 && __builtin_cpu_is("intel"))
        return rows > 4 && rows <= (weights <= 1 << 16 ? 256 : 64);
#endif
    return rows >= 16 && product_pays();
}

int64_t product_packed_size(int64_t p, int64_t n) {
    return scalar::groups_of(p) * kProductGroup * n;
}

#endif

}  // namespace deepl0
