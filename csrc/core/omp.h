// Orthogonal matching pursuit on unit atoms: two forms that choose alike.
//
// gram: besides the correlations alpha = D'r, a row keeps v_k = D'q_k for the directions q_k that
// its atoms add (Gram-Schmidt): v_k = (G[atom] - sum_j w_j v_j) / l, alpha -= y_k v_k. These are
// the rows of a Cholesky factorisation of G pivoted by the pursuit, so w_j is read off as
// v_j[atom], no triangular system is solved before the end, and G gives one row per atom.
// residual: the directions themselves, the correlations by a matrix product per step; for a G that
// is too large or too expensive for the rows there are.
//
// Nonnegative codes (omp_positive.cpp) have kernels of the same form: the correlations compete as
// they are, and where least squares would make a coefficient negative, atoms leave the factor.
//
// The kernels work on rows that the caller chose, allocate nothing and may run concurrently on
// distinct rows.
#pragma once

#include <cstdint>

namespace deepl0 {

/// Sizes of a problem: signals of n entries, p atoms of norm 1 (or 0), codes of m entries, and the
/// correlation, relative to the norm of the signal, above which an atom is worth adding.
template <class T>
struct OmpProblem {
    int64_t n, p, m;
    T tol;
};

/// Results of the rows that a kernel is given: values and indices [rows, m], indices ascending;
/// count [rows]; objective of k atoms at objective + k * stride + row.
template <class T>
struct OmpCodes {
    T* values;
    int64_t* indices;
    int64_t* count;
    T* objective;
    int64_t stride;

    OmpCodes from(int64_t row, int64_t m) const {
        return {values + row * m, indices + row * m, count + row, objective + row, stride};
    }
};

/// Memory of the residual form for a panel of rows. live[s] is the row of slot s; the residuals of
/// the live rows stand in the order of their slots.
template <class T>
struct OmpPanel {
    T* residual;       // [rows, n]
    int64_t* live;     // [rows]
    T* directions;     // [rows, m, n]
    T* lower;          // [rows, m, m], the Cholesky factors
    T *y, *squared;    // [rows, m], [rows]
    int32_t* support;  // [rows, m]
    // Of nonnegative codes alone: how many of the chosen atoms are in the factor, and how many out
    // of it may come back, [rows] each; and omp_scratch(m) elements of the calling thread.
    int32_t *inside = nullptr, *waiting = nullptr;
    T* scratch = nullptr;
};

/// The kernels of one ISA level for T = float or double.
template <class T>
struct OmpKernels {
    /// Codes of x [rows, n] (rows ldx apart). alpha [rows, ld]: their correlations, overwritten;
    /// gram [p, ld]: D'D; both with zeros in columns p to ld, a multiple of kOmpPad. workspace: a
    /// block of omp_workspace bytes, 64-byte aligned. m^2 p flops a row, from the v_k in L1 and L2.
    void (*gram)(const OmpProblem<T>& problem, const T* x, int64_t ldx, int64_t rows, T* alpha,
                 const T* gram, int64_t ld, OmpCodes<T> out, void* workspace);

    /// Residual form: start, one step per atom, finish. step: alpha [live, ld] are the correlations
    /// of the residuals, zeros in the padding; atom i is d[j * row_stride + i * col_stride], j < n.
    /// Returns how many rows are still live. 4 k n flops a row for its k-th atom.
    void (*start)(const OmpProblem<T>& problem, const T* x, int64_t ldx, int64_t rows,
                  OmpPanel<T> panel, OmpCodes<T> out);
    int64_t (*step)(const OmpProblem<T>& problem, int64_t k, int64_t live, T* alpha, int64_t ld,
                    const T* d, int64_t row_stride, int64_t col_stride, OmpPanel<T> panel,
                    OmpCodes<T> out);
    void (*finish)(const OmpProblem<T>& problem, int64_t rows, OmpPanel<T> panel, OmpCodes<T> out);
};

/// The kernels of the ISA level in force (see active_isa).
template <class T>
const OmpKernels<T>& omp_kernels();
template <class T>
const OmpKernels<T>& omp_positive_kernels();

/// Rows of correlations are padded to a multiple of this, the lanes of the widest vector.
constexpr int64_t kOmpPad = 16;

/// Elements of OmpPanel::scratch.
constexpr int64_t omp_scratch(int64_t m) { return 4 * m; }

/// Bytes of workspace of one thread for the gram form.
template <class T>
int64_t omp_workspace(int64_t p, int64_t m);

}  // namespace deepl0
