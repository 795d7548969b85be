// What the factored encoder has between its products, z <- top_m(z + step W (x - D z) + b), and its
// backward: passes over [rows, n] and over codes. Steps are on the device, and unread by the host.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// out[r, j] = step (x[r, j] - dz[r, j]), x [rows, n] of `dtype`, dz and out contiguous; dz may be
/// null, for 0, and step, for 1. Bytes: x and dz read, out written.
void residual(DType dtype, const void* x, int64_t x_stride, int64_t rows, int64_t n,
              const float* dz, const float* step, float* out, cudaStream_t stream);

/// q <- -step q, and total += step q (`add` false: =), `count` numbers each; step may be null, for
/// 1, and total. Bytes: what there is, read and written.
void back_to_residual(float* q, int64_t count, const float* step, float* total, bool add,
                      cudaStream_t stream);

/// dz[r, j] += the entry of the code (values, indices: m ascending a row) at unit at[r, j], if it
/// has one; then 0 where z[r, j] is 0, unless z is null. at, z and dz [rows, wanted]. Bytes: dz
/// read and written, at and z read, log2(m) sectors of indices an entry.
void add_common_entries(const float* values, const int64_t* indices, int64_t m, const int64_t* at,
                        const float* z, int64_t rows, int64_t wanted, float* dz,
                        cudaStream_t stream);

/// Bytes of workspace of `dot`, at most.
constexpr int64_t kDotBytes = 8 * 1024;

/// out[0] = <a, b>, `count` numbers each, added up in float64 in one order. Bytes: one read of
/// both.
void dot(const float* a, const float* b, int64_t count, float* out, void* workspace,
         cudaStream_t stream);

}  // namespace deepl0::cuda
