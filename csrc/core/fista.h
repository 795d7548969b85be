// The l1 problem 1/2 ||x - D a||^2 + lam ||a||_1 by the proximal gradient with momentum (FISTA),
// step mu:
//   y = a + w (a - a'),  a' the code before;  next a = soft(y + mu D'(x - D y), mu lam_k),
// soft(u, t) = sign(u) max(|u| - t, 0), or max(u - t, 0) where codes are nonnegative.
// lam_k falls from the largest correlation to lam by a fixed factor: so codes stay sparse on the
// way from 0, where the first ones of a fixed lam are nearly dense.
//
// Gradients are affine: with q = mu D'(x - D a) the gradient step at y is q + w (q - q'), and a is
// sparser than y, whose support is that of two codes. So q is formed at the code, which also gives
// its objective, as in iht.h; the extrapolation and all sums are one pass over the p units. A row
// whose code is sparse adds up rows of -mu D'D through all its iterations: only those of its
// support, which hardly changes, have to be in the cache.
// Sources: Beck and Teboulle 2009; the momentum restarts where it points uphill (O'Donoghue and
// Candes 2015); Hale, Yin and Zhang 2008 (continuation in lam). Every row has its own momentum,
// penalty and iteration count and stops by itself.
#pragma once

#include "iht.h"

namespace deepl0 {

/// lam_(k+1) / lam_k. Of 0.5 to 0.9, 0.8 reads the fewest rows of D'D within 10 % of the fewest
/// iterations, on random and on learned dictionaries.
constexpr double kFistaFall = 0.8;

/// What all rows share.
template <class T>
struct FistaProblem {
    int64_t p;
    T step, lam, threshold;  // threshold = step lam, where it stops to fall
    double tol;
    int64_t max_iter;
    bool positive = false;  // codes >= 0
};

/// The state of some rows, k = iterations[r]. All start with t = 1 and momentum 0; at the code 0
/// with threshold max |b| (max b where codes are nonnegative), or at a given code with the last
/// threshold.
template <class T>
struct FistaRows {
    T* codes[2];  // [*, p]: a_k of row r in codes[k % 2], a_(k-1) in the other; both a_0 at k = 0
    T* slopes;    // [*, p]: q of a_(k-1)
    T* t;
    T* momentum;     // w of the step to come
    T* threshold;    // of the step before
    int32_t* count;  // nonzeros of a_k
    int64_t* iterations;
    IhtStatus* status;  // last: only the objective of the code is missing
    bool* converged;
    const T* half_xx;   // 1/2 ||x||^2
    T* objective;       // of the final code
    T* const* history;  // as in IhtRows, or null: only the final objective is wanted
    int64_t history_ld;
    int64_t limit;       // a row pauses after this many iterations
    T* first = nullptr;  // takes the objective at k = 0, unless null
};

/// The kernels of one ISA level for T = float or double. rows: the n rows to work on. b [*, p] =
/// mu D'x. workspace: fista_workspace(p) bytes, 64-byte aligned, of the calling thread.
template <class T>
struct FistaKernels {
    /// One iteration of each row from its q: row i of q, plus row rows[i] of b where add_b, or the
    /// latter alone where q is null (the code 0). Overwrites q. O(p) a row.
    void (*advance)(const FistaProblem<T>& f, const FistaRows<T>& s, const int32_t* rows, int64_t n,
                    const T* b, T* q, bool add_b);

    /// Iterates each row until it is done, pauses, or has more than `most` nonzeros. gram = -mu
    /// D'D. Per row and iteration 2 count p flops, count p elements of gram read.
    void (*iterate)(const FistaProblem<T>& f, const FistaRows<T>& s, const int32_t* rows, int64_t n,
                    const T* b, const T* gram, int64_t most, void* workspace);

    /// out[i, :] = x[row, :] + sum_j a_j atoms[j, :] for the i-th of the rows, atoms [p, cols].
    void (*residual)(const FistaProblem<T>& f, const FistaRows<T>& s, const int32_t* rows,
                     int64_t n, const T* x, int64_t ldx, const T* atoms, int64_t cols, T* out,
                     void* workspace);
};

/// The kernels of the ISA level in force (see active_isa).
template <class T>
const FistaKernels<T>& fista_kernels();

/// Bytes of workspace of one thread.
template <class T>
int64_t fista_workspace(int64_t p);

}  // namespace deepl0
