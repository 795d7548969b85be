// Gather-sums of rows by sparse codes, and their products: decode and what else has its form.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// out[r, :] = base[r, :] + sum_j values[r, j] * w[indices[r, j], :], n columns; the sum in order
/// of j, by fused multiply-adds. w [units, n] of `dtype`, rows of stride w_stride; out contiguous,
/// of `dtype` or float32. base: float32 rows of stride base_stride, or null. An index outside [0,
/// units) stops the kernel. Bytes: m n elements of w a row (L2 while w fits), n written.
void gather_rows(const float* values, const int64_t* indices, int64_t rows, int64_t m, DType dtype,
                 const void* w, int64_t w_stride, int64_t units, int64_t n, const float* base,
                 int64_t base_stride, DType out_dtype, void* out, cudaStream_t stream);

/// out[r, j] = <w[indices[r, j], :], x[r, :]>, both of `dtype`, n columns; a fixed order of sums.
/// Bytes: m n elements of w a row, x read m times from L1, m written.
void row_dots(const int64_t* indices, int64_t rows, int64_t m, DType dtype, const void* w,
              int64_t w_stride, int64_t units, const void* x, int64_t x_stride, int64_t n,
              float* out, cudaStream_t stream);

}  // namespace deepl0::cuda
