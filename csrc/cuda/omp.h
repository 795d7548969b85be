// Orthogonal matching pursuit on unit atoms, one block a signal: the gram form of core/omp.h.
//
// The chosen atoms S = (s_0 .. s_k-1) have the Gram matrix G_S = L L'. A block keeps C = L^-1, of
// which an atom adds one row, so that no triangular system is solved one unknown after the other:
//
//     w = C G[S, s],   l = sqrt(1 - w'w),   C[k] = [-w'C, 1] / l,   y_k = alpha_s / l,
//     v = (G[s] - sum_j (w'C)_j G[s_j]) / l,   alpha -= y_k v,   and in the end  z = C'y.
//
// v is the new direction's correlation with every atom; where the v_j of the atoms before fit in
// shared memory beside the rest, v = (G[s] - sum_j w_j v_j) / l is formed from those instead of
// rows of G. Choices, stopping and objective are those of core/omp.h: the largest |alpha|, equal
// ones by lowest index, NaN never; no atom at or below tol ||x|| or with l^2 <= 100 eps.
//
// Nonnegative codes (omp_positive.cu): after every atom nonnegative least squares z on all chosen
// ones by an active set, then alpha = b - G z. Where an atom leaves the factor, the rows of C
// behind it are made anew.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// What a block takes: with these its shared memory is below the 99 KiB that every device has.
constexpr int64_t kMostAtoms = 16384, kMostChosen = 128;

struct Omp {
    const float* x;  // [rows, n], rows x_stride apart
    int64_t x_stride, rows;
    float* alpha;       // D'x [rows, ld], which omp_positive overwrites
    const float* gram;  // D'D [p, ld]; of both, columns from p on are not used
    int n, p, ld, m;    // ld: a multiple of 4, p <= ld < p + 4; 1 <= m <= p
    float tol;
    // Results: [rows, m], indices ascending, zeros at the lowest free ones where atoms are missing;
    // [rows]; that of k atoms at k * objective_stride + row, k <= m.
    float* values;
    int64_t* indices;
    int64_t* count;
    float* objective;
    int64_t objective_stride;
    cudaStream_t stream;
};

/// Whether the v_j are kept in shared memory: where three blocks share a multiprocessor then.
bool omp_keeps_rows(int64_t ld, int64_t m, const Device& device);

/// Dynamic shared memory of a block.
size_t omp_shared_bytes(int64_t ld, int64_t m, bool keeps_rows);

/// Bytes a signal: 4 (n + p) read, 16 m written; of G, from L2, 2 m (m - 1) p, or 4 (m - 1) p where
/// the v_j are kept. Flops: m (m - 1) p, and 2 m^3 / 3 for C and w.
void omp(const Omp& a);

/// The same for codes >= 0. Bytes of G and D'x: 2 m (m + 1) p, as long as every atom stays.
void omp_positive(const Omp& a);

}  // namespace deepl0::cuda
