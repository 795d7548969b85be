// The Deep M-Sparse encoder, forward: z_1 = top_m(W x + b), z_{k+1} = top_m(W x + b + S z_k). What
// is called wx here has the bias in it.
//
// z_k has m nonzeros, so S z_k is a gather-sum of m rows of S' (m p multiply-adds instead of p^2)
// added to W x + b, followed at once by the selection. The kernels work on rows that the caller
// chose, allocate nothing and may run concurrently on distinct rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace deepl0 {

/// Codes of `stages` stages, m entries a row, indices ascending: row r of the last stage at values
/// + r * m, of stage k before it at saved_values + k * saved_stride + r * m; indices likewise.
/// saved_* may be the last stage's own arrays with saved_stride 0, if no stage is to be kept.
template <class T>
struct TopMCodes {
    T* values;
    int64_t* indices;
    T* saved_values;
    int64_t* saved_indices;
    int64_t m, stages, saved_stride;
    bool positive;            // the m largest of max(u, 0), not of |u|
    DType type = DType::f32;  // what values are rounded to, where it is a half type
};

/// S of every step, step k (from z_k to z_{k+1}) at data + k * step_stride, plain [p, p]:
/// row-major, or S' row-major where transposed. step_stride 0: shared by all steps.
template <class T>
struct StepMatrices {
    const T* data;
    int64_t step_stride;
    bool transposed;
};

/// The kernels of one ISA level for T = float or double. workspace: a block of
/// encode_workspace(p, m) bytes, 64-byte aligned, of the calling thread.
template <class T>
struct EncodeKernels {
    /// All stages, one row at a time from wx [rows, p] to its last code. s must be
    /// transposed. All but S' stays in L1: the path while S' fits in L2.
    /// Per row and step 2 m p flops, m p elements of S' read.
    void (*rows)(const T* wx, int64_t rows, int64_t p, StepMatrices<T> s, TopMCodes<T> out,
                 void* workspace);

    /// The same from an s that is not transposed: u_i = wx_i + sum_j v_j S[i, idx_j]. Touches m
    /// scattered entries in each row of S: for a few rows cheaper than transposing S.
    void (*columns)(const T* wx, int64_t rows, int64_t p, StepMatrices<T> s, TopMCodes<T> out,
                    void* workspace);

    /// The same for an S beyond L2: a stage at a time, and within it one column panel of S' at a
    /// time over all rows, so that S is read once per call and step, not once per row. A panel is
    /// packed where it is used and never leaves L2. wx is overwritten.
    /// panel: p * width elements; null: s is in panels already, panel c of step k at data + k *
    /// step_stride + c * p. u: rows * p elements, unused for two stages.
    void (*panels)(T* wx, int64_t rows, int64_t p, StepMatrices<T> s, int64_t width,
                   TopMCodes<T> out, T* u, T* panel, void* workspace);

    /// One stage from its pre-activations u [rows, p] to the codes of stage k of out.
    void (*select)(const T* u, int64_t rows, int64_t p, TopMCodes<T> out, int64_t k,
                   void* workspace);

    /// out[j, i] = s[i, j] for i in [begin, end) and all j; s is [rows, cols].
    void (*transpose)(const T* s, int64_t rows, int64_t cols, int64_t begin, int64_t end, T* out);

    /// out[r, i] = base[r, i] + <x[r, :], w[i, :]>, r < rows, i < units, n terms each; base may be
    /// null, its rows have the stride ldb, which may be 0. For few rows: one pass over w, at the
    /// speed of the memory that holds it.
    void (*product)(const T* x, int64_t ldx, int64_t rows, const T* w, int64_t ldw, int64_t units,
                    int64_t n, const T* base, int64_t ldb, T* out, int64_t ldo);
};

/// The kernels of the ISA level in force (see active_isa).
template <class T>
const EncodeKernels<T>& encode_kernels();

/// Bytes of workspace of one thread.
template <class T>
int64_t encode_workspace(int64_t p, int64_t m);

}  // namespace deepl0
