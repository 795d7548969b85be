// out = x W' + bias in float32 by our own kernel, where the BLAS does not use the processor's
// vectors, or is slow to begin: tiles of a few rows by two vectors of units, over a packed W. Every
// entry is one chain of fma in ascending order of the terms (at level scalar each product is
// rounded), so it does not depend on the number of rows or threads.
#pragma once

#include <cstdint>

namespace deepl0 {

/// Units are packed in groups of this many.
constexpr int64_t kProductGroup = 32;

/// Whether it is known to beat the BLAS at all sizes, packing W included: level avx512 on an AMD
/// processor, where MKL stays with AVX2 (2.5 times slower, measured on Zen 5).
bool product_pays();

/// Whether it does for so many rows by p n weights. On Intel at level avx512 MKL's product takes
/// some 40 us to begin from 16 rows on, and runs kernels of half the speed below; beyond 64 rows
/// (256 of few weights) it is as fast (measured on Ice Lake, p = 128 to 2048, n = 256).
bool product_pays(int64_t rows, int64_t weights);

/// Floats of packed W [p, n].
int64_t product_packed_size(int64_t p, int64_t n);

/// The kernels of one ISA level.
struct ProductKernels {
    /// Packs the groups of units [begin, end) of W [p, n], rows of stride ldw. Disjoint ranges may
    /// run concurrently.
    void (*pack)(const float* w, int64_t ldw, int64_t p, int64_t n, int64_t begin, int64_t end,
                 float* packed);

    /// out [rows, p] (stride ldo) from x [rows, n] (stride ldx) and packed W. 2 rows p n flops.
    /// Every sum starts from bias [p], null: from 0.
    void (*rows)(const float* x, int64_t ldx, int64_t rows, const float* packed, int64_t p,
                 int64_t n, const float* bias, float* out, int64_t ldo);
};

/// The kernels of the ISA level in force (see active_isa).
const ProductKernels& product_kernels();

}  // namespace deepl0
