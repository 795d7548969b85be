// Least squares on given supports by the Gram matrix of unit atoms, in float64.
//
// A row's support S has the system G[S, S] z = right, which is factored by Cholesky, L L', in
// panels of rows; the right side is one more row of L, so that the forward substitution comes with
// it. An atom whose squared distance from the span of those before it is at most `floor` depends on
// them: where there is one, the row starts again with the farthest atom first (equal ones by lowest
// place) and takes no other than independent ones. The rest have the value 0, as places without an
// atom have. NaN in G makes an atom dependent; NaN in a right side makes NaN of its values.
//
// A row's values depend on the row alone. The kernels allocate nothing and may run concurrently on
// distinct rows.
#pragma once

#include <cstdint>

namespace deepl0 {

/// gram [p, ld]: symmetric. right and z [rows, s], right_stride and s apart; support [rows, s],
/// support_stride apart: in [0, p), or -1 where there is no atom.
struct LeastSquares {
    const double* gram;
    int64_t ld;
    double floor;
    int64_t s;
    const double* right;
    int64_t right_stride;
    const int64_t* support;
    int64_t support_stride;
    double* z;
};

/// The kernels of one ISA level.
struct LeastSquaresKernels {
    /// Rows [begin, end). workspace: least_squares_workspace bytes, 64-byte aligned. s^3 / 3 flops
    /// a row, four times as many of a row that starts again; s^2 / 2 numbers of G are read.
    void (*solve)(const LeastSquares& problem, int64_t begin, int64_t end, void* workspace);
};

/// The kernels of the ISA level in force (see active_isa).
const LeastSquaresKernels& least_squares_kernels();

/// Bytes of workspace of one thread: about 8 s^2, of which a row that does not start again touches
/// half.
int64_t least_squares_workspace(int64_t s);

}  // namespace deepl0
