// What a pass moves between its kernels: entries of codes, columns of matrices.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// out[r, i] = grad[r * row_stride + i * column_stride] in float32, 0 where values[r, i] is 0:
/// the gradient of a nonnegative code. grad and values [rows, m] of `dtype`; values may be null.
/// Bytes: both read, out written.
void copy_entries(DType dtype, const void* grad, int64_t row_stride, int64_t column_stride,
                  const void* values, int64_t rows, int64_t m, float* out, cudaStream_t stream);

/// values [count] rounded to nearest even to `dtype`, a half type, in place.
void round_entries(DType dtype, float* values, int64_t count, cudaStream_t stream);

/// out[r, indices[r, i]] += values[r, i], out [rows, p]; the indices of a row are distinct. An
/// index outside [0, p) stops the kernel. Bytes: m sectors of out a row, read and written.
void add_entries(const float* values, const int64_t* indices, int64_t rows, int64_t m, int64_t p,
                 float* out, cudaStream_t stream);

/// out[r, i] = dense[r, indices[r, i]], dense [rows, p]; 0 where values[r, i] is 0, if values is
/// not null. An index outside [0, p) stops the kernel. Bytes: m sectors of dense a row, out
/// written.
void entries_at(const float* dense, const int64_t* indices, const float* values, int64_t rows,
                int64_t m, int64_t p, float* out, cudaStream_t stream);

/// out[r, 0..width) = in[r, 0..columns), then column[r] (1 of the dtype where that is null), then
/// zeros: a bias as one more term of a product.
void append_column(DType dtype, const void* in, int64_t in_stride, int64_t rows, int64_t columns,
                   const void* column, int64_t width, void* out, cudaStream_t stream);

/// out[e, i] = in[i * in_stride + indices[e]], e < entries, i < rows, and order[e] = e: the columns
/// in use, as rows. An index outside [0, columns) stops the kernel.
void gather_columns(size_t element, const void* in, int64_t in_stride, int64_t rows,
                    int64_t columns, const int64_t* indices, int64_t entries, void* out,
                    int64_t* order, cudaStream_t stream);

}  // namespace deepl0::cuda
