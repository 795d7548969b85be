// Least squares on given supports by the Gram matrix, one block a system, in float64: the rules of
// core/least_squares.h.
//
// The lower triangle of G[S, S] = L L' lies in shared memory, row after row, with the right side as
// one more row, so that the forward substitution comes with the factorisation. Column j of L is
// (G[i, j] - sum_k L[i, k] L[j, k]) / root, a row a thread; squared distances from the span of the
// atoms so far fall along, so a column costs one barrier. Where one is at most the floor, the block
// starts again: the farthest atom changes places with the j-th, and its column of G is read as it
// is chosen. One warp substitutes back.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// Places that a block takes: with these its shared memory is below the 99 KiB that every device
/// has.
constexpr int64_t kMostPlaces = 154;

struct LeastSquares {
    const double* gram;  // [p, ld], symmetric
    int64_t ld, p;       // p < 2^31
    double floor;
    const double* right;  // [rows, s], right_stride apart
    int64_t right_stride;
    const int64_t* support;  // [rows, s], support_stride apart; -1: no atom. Another index traps.
    int64_t support_stride;
    int64_t rows;
    int s;      // <= kMostPlaces
    double* z;  // [rows, s]
    cudaStream_t stream;
};

/// Dynamic shared memory of a block.
size_t least_squares_shared_bytes(int64_t s);

/// Bytes a system: 16 s read and 8 s written, 4 s (s + 1) of G, from L2; again as many of those,
/// and a sector an entry, where it starts again. Flops: s^3 / 3 + 3 s^2.
void least_squares(const LeastSquares& a);

}  // namespace deepl0::cuda
