// Iterative hard thresholding with a fixed step mu: a <- h(a + mu D'(x - D a)), h the m largest
// entries or the hard threshold, for nonnegative codes of max(u, 0) in the place of u.
//
// a has few nonzeros, so q = mu D'(x - D a) is a gather-sum: of rows of -mu D'D on top of mu D'x,
// or of atoms, for the residual x - D a, which a product with mu D' follows. q and not q + a is
// summed: the objective is then read off q at the support of a,
//   1/2 ||x - D a||^2 = 1/2 ||x||^2 - 1/2 sum_i a_i (b_i + q_i) / mu,  b = mu D'x,
// without the cancellation of (q + a) - a (at least 0: what is left is the rounding of the two
// terms). Every row has its own iteration count and stops by
// itself. Source: Blumensath and Davies 2008.
#pragma once

#include <cstdint>

namespace deepl0 {

/// What all rows share.
template <class T>
struct IhtProblem {
    int64_t p, m;          // h keeps the m largest entries, or, where m < 0,
    T threshold, penalty;  // all of |u| >= threshold, at this price each
    T step;
    double tol;
    int64_t max_iter;
    bool positive = false;  // codes >= 0
};

enum class IhtStatus : uint8_t { running, last, done, rose };

/// Convergence is looked at every so many iterations, as in the reference.
constexpr int64_t kIhtCheckEvery = 5;

/// Iterations of one block of the history.
constexpr int64_t kIhtBlock = 64;

/// The state of some rows; row r's code has count[r] entries at r * capacity, indices ascending.
template <class T>
struct IhtRows {
    T* values;
    int32_t* indices;
    int64_t capacity;  // iht_capacity
    int32_t* count;
    int64_t* iterations;
    IhtStatus* status;  // last: only the objective of the code is missing
    bool* converged;
    const T* half_xx;   // 1/2 ||x||^2
    T* first;           // objective of the start
    T* objective;       // of the latest code whose q was seen; how far it rose, if it rose
    T* const* history;  // objective k of row r: history[k / kIhtBlock][k % kIhtBlock * ld + r]
    int64_t history_ld;
    int64_t limit;  // a row pauses after this many iterations
};

/// The kernels of one ISA level for T = float or double. rows: the n rows to work on, ascending.
/// workspace: iht_workspace(p, m) bytes, 64-byte aligned, of the calling thread.
template <class T>
struct IhtKernels {
    /// Iterates each row until it is done, pauses, or has more than `most` entries. b [*, p] =
    /// mu D'x; gram = -mu D'D, which should fit in L2: all else stays in L1.
    /// Per row and iteration 2 count p flops, count p elements of gram read.
    void (*iterate)(const IhtProblem<T>& f, const IhtRows<T>& s, const int32_t* rows, int64_t n,
                    const T* b, const T* gram, int64_t most, void* workspace);

    /// The objective of the rows of which only that is missing, which are done then: q is formed
    /// only on their support, by the same sums. Per row 2 count^2 flops, one by one: rows with more
    /// than p / 8 entries are left alone.
    void (*finish)(const IhtProblem<T>& f, const IhtRows<T>& s, const int32_t* rows, int64_t n,
                   const T* b, const T* gram, void* workspace);

    /// out[i, :] = base[row, :] + sum_j value_j matrix[index_j, :] for the i-th of the rows.
    void (*gather)(const IhtRows<T>& s, const int32_t* rows, int64_t n, const T* base,
                   int64_t base_ld, const T* matrix, int64_t cols, T* out, int64_t out_ld);

    /// One iteration of each row from its q, the i-th of q [n, p], which is overwritten. The
    /// objective comes from b, or is 1/2 ||residual||^2 of the i-th of residual [n, atoms] where
    /// that is given.
    void (*advance)(const IhtProblem<T>& f, const IhtRows<T>& s, const int32_t* rows, int64_t n,
                    const T* b, const T* residual, int64_t atoms, T* q, void* workspace);
};

/// The kernels of the ISA level in force (see active_isa).
template <class T>
const IhtKernels<T>& iht_kernels();

/// Room for one code, with what the selection may write beyond it.
int64_t iht_capacity(int64_t p, int64_t m);

/// Bytes of workspace of one thread.
template <class T>
int64_t iht_workspace(int64_t p, int64_t m);

}  // namespace deepl0
