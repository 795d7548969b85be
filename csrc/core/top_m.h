// Selection over the last dimension: max_M pooling and unpooling.
//
// Contract: the key of an entry is |u|; every NaN has the same key, above inf. Exactly m entries
// are chosen; among equal keys the lowest index wins (so -0.0 and 0.0 tie). Values are bit-equal to
// the input, indices ascend. `positive` selects from max(u, 0) instead: entries of it that are not
// > 0 have the value +0. The result depends on the row alone, not on ISA level, thread or
// alignment.
//
// All functions work on the rows [row_begin, row_end) of the caller's tensors, so that the caller
// parallelises; strides are in elements, and where none is given rows are contiguous. Data pointers
// need the alignment of their element only. A workspace belongs to one call at a time, needs the
// alignment of malloc and no initialisation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace deepl0 {

/// Bytes of workspace for top_m and keep_top_m: about 8 p (f32), 12 p (f16, bf16) or 20 p (f64).
size_t top_m_workspace_bytes(DType dtype, int64_t p, int64_t m);

/// Bytes of workspace for unpool: size / 8.
size_t unpool_workspace_bytes(int64_t size);

/// out[r, :] = 0 except out[r, indices[r, i]] = values[r, i], i < m. Returns -1, or the flat
/// position r * m + i of the first index of the range that is not in [0, size) or repeats an
/// earlier one of its row; out is then unspecified from row r on. Indices may come in any order
/// (ascending is fastest). Writes size elements a row.
int64_t unpool(DType dtype, const void* values, const int64_t* indices, int64_t m, int64_t size,
               void* out, int64_t row_begin, int64_t row_end, void* workspace);

/// The kernels of one ISA level.
struct TopMKernels {
    /// values[r, 0..m), indices[r, 0..m): the m entries of largest |u[r, :]|. 0 <= m <= p < 2^31.
    /// Reads p, writes m (value + 8) bytes a row; about 3 passes over a row in L1, no flops.
    void (*top_m)(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m, bool positive,
                  void* values, int64_t* indices, int64_t row_begin, int64_t row_end,
                  void* workspace);

    /// out[r, j] = u[r, j] where j is among the m entries of largest |u[r, :]|, else +0. out may be
    /// u (with the same stride). mask [rows, ceil(p/8)] has bit j%8 of byte j/8 set for the kept
    /// entries (positive: that are not 0), its padding bits are 0. Reads p, writes p elements and p
    /// / 8 bytes a row.
    void (*keep_top_m)(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m,
                       bool positive, void* out, int64_t out_stride, uint8_t* mask,
                       int64_t row_begin, int64_t row_end, void* workspace);

    /// out[r, j] = u[r, j] where the bit of mask [rows, ceil(p/8)] is set, else +0. out may be u
    /// (with the same stride). Reads p, writes p elements a row.
    void (*apply_mask)(DType dtype, const void* u, int64_t u_stride, const uint8_t* mask, int64_t p,
                       void* out, int64_t out_stride, int64_t row_begin, int64_t row_end);
};

/// The kernels of the ISA level in force (see active_isa).
const TopMKernels& top_m_kernels();

}  // namespace deepl0
