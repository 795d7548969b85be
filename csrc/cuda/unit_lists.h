// Sparse rows and their transpose on the GPU: for every unit the entries that use it, and the
// gradients that are sums over those lists. Deterministic: the lists are sorted stably, every sum
// has one fixed order, no floating-point atomics. (outer_atomic is the exception, for who asks.)
//
// Entries are those of `parts` codes [batch, m] of int64 indices, one after the other: entry e
// belongs to row (e / m) % batch. The indices of one row of one code are distinct. All entries:
// at most kMostSorted.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// Some below 2^31, so that 32-bit positions do not wrap.
constexpr int64_t kMostSorted = INT32_MAX - 65536;

/// The entries by unit: unit i has positions [start[i], start[i + 1]); at each of them stands the
/// unit and the entry. Entries of one unit ascend.
struct UnitLists {
    int32_t* start;  // units + 1
    int32_t* unit;   // entries
    int32_t* entry;  // entries
};

/// Bytes of workspace of `group`: a second copy of unit and entry, and the counts.
size_t group_workspace_bytes(int64_t entries);

/// Stable radix sort of the entries by unit, 8 bits a pass: ceil(log2(units) / 8) passes of 16
/// bytes moved an entry, plus 8 to read the indices. An index outside [0, units) stops the kernel.
void group(const int64_t* indices, int64_t entries, int64_t units, UnitLists lists, void* workspace,
           cudaStream_t stream);

/// Bytes of workspace of `combine`: two rows of n for every chunk of 128 entries.
size_t combine_workspace_bytes(int64_t entries, int64_t n);

/// out[i, :] = sum c[entry] * x[row of entry, :] over the list of unit i: the gradient of W or D'.
/// x [batch, n] of `dtype`, rows of stride x_stride; out [units, n] of `dtype`, added up in float32
/// and written once, empty lists included; where `accumulate`, what stands there is added to (of
/// float32 alone), and that of empty lists not touched. Work is cut into chunks of 128 entries,
/// however long the lists are. Bytes: n elements of x an entry (L2 while x fits), 1/64 of that for
/// the ends of the chunks, and out.
void combine(UnitLists lists, const float* c, int64_t entries, int64_t batch, int64_t m,
             int64_t units, DType dtype, const void* x, int64_t x_stride, int64_t n,
             bool accumulate, void* out, void* workspace, cudaStream_t stream);

/// out[i, index] += c[entry] * value over the sparse row (indices, values: m entries of the entry's
/// row) for every entry of the list of unit i: a sum of outer products, the gradient of S. out
/// [units, columns] float32; what stands there is kept and added to where `accumulate`. Bytes: 12 m
/// an entry (L2) and out. One code (parts = 1).
void outer(UnitLists lists, const float* c, int64_t m, int64_t units, const int64_t* indices,
           const float* values, int64_t columns, bool accumulate, float* out, cudaStream_t stream);

/// The same sum without lists, straight from the codes: unit rows[r, i] of the entry c[r, i]. By
/// atomic additions, whose order is not fixed: the last bits differ from run to run. An index
/// outside [0, units) or [0, columns) stops the kernel. Bytes: m sectors of out an entry, read and
/// written in L2, and 2 m 12 bytes of codes a row.
void outer_atomic(const int64_t* rows, const float* c, int64_t batch, int64_t m, int64_t units,
                  const int64_t* indices, const float* values, int64_t columns, bool accumulate,
                  float* out, cudaStream_t stream);

/// out[r, j] = sum_i c[r, i] * s[upper[r, i] * row_stride + lower[r, j] * col_stride], the sum in
/// order of i: the gradient of z on its support. s of `dtype`. Bytes: m^2 sectors of s a row (L2
/// while s fits), 28 m of codes.
void product_on_support(const int64_t* upper, const float* c, const int64_t* lower, int64_t rows,
                        int64_t m, DType dtype, const void* s, int64_t row_stride,
                        int64_t col_stride, int64_t units, float* out, cudaStream_t stream);

}  // namespace deepl0::cuda
