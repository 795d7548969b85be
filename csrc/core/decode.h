// Decoding x_hat = D a of an M-sparse code a, and its backward. D' is [p, n], its row i the atom i.
// The gradient of D is combined by unit lists (unit_lists.h).
#pragma once

#include <cstdint>

namespace deepl0 {

/// Kernels of one ISA level, T = float or double, for a range of rows; values and indices are
/// [rows, m], indices in [0, p).
template <class T>
struct DecodeKernels {
    /// out[r, :] = sum_j values[r, j] * dt[indices[r, j], :], n columns. Per row 2 m n flops and m
    /// n elements of D' read, from L2 while D' fits there.
    void (*rows)(const T* values, const int64_t* indices, int64_t rows, int64_t m, const T* dt,
                 int64_t n, T* out);

    /// The same from D itself [n, p]: touches m scattered entries in each row of D; for few rows.
    void (*columns)(const T* values, const int64_t* indices, int64_t rows, int64_t m, const T* d,
                    int64_t n, int64_t p, T* out);

    /// grad_values[r, j] = <dt[indices[r, j], :], grad[r, :]>: the traffic of `rows`.
    void (*dots)(const T* grad, const int64_t* indices, int64_t rows, int64_t m, const T* dt,
                 int64_t n, T* grad_values);
};

/// The kernels of the ISA level in force.
template <class T>
const DecodeKernels<T>& decode_kernels();

}  // namespace deepl0
