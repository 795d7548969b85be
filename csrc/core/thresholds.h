// Elementwise thresholds: hard, soft, HELU_sigma and its straight-through variants.
//
// With a = |u| and lo = (1 - sigma) theta:
//   hard, ste, ste_theta  u if !(a < theta), else 0
//   soft                  sign(u) max(a - theta, 0)
//   helu                  0 if a <= lo; sign(u) (a - lo) / sigma if lo < a < theta;
//                         u if a >= theta; sigma = 0 is hard
// Backward coefficients c = dout/du and e = dout/dtheta:
//   hard       c = [a >= theta]                     e = 0
//   soft       c = [a > theta]                      e = -sign(u) [a > theta]
//   helu, ste  ramp lo < a < theta: c = 1/sigma,    e = -sign(u) (1 - sigma) / sigma
//              a >= theta: c = 1, e = 0;  otherwise both 0;  sigma = 0 as hard
//   ste_theta  c of hard                            e of helu
// The one-sided kinds are those of max(u, 0); with u <= 0 c = e = 0.
// A NaN in u or theta gives NaN out; in the backward, as every comparison with it fails, 0.
//
// u is [rows, p] with row stride u_stride; theta is one value (theta_per_entry = false) or [p],
// float64 for DType::f64 and float32 for all others (the half types compute in float32 and are
// rounded at the end). Pointers may have any alignment that their element type allows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace deepl0 {

enum class ThresholdKind : int { hard, soft, helu, ste, ste_theta };

/// A kind, two-sided or one-sided.
struct Threshold {
    ThresholdKind kind;
    bool positive = false;

    bool may_be_zero() const { return kind == ThresholdKind::hard || kind == ThresholdKind::soft; }
};

/// Index of the first of n thetas that is not allowed (hard and soft need >= 0, the others > 0; NaN
/// never is), or -1. dtype f64 or f32: the type of theta.
int64_t first_bad_theta(DType dtype, Threshold kind, const void* theta, int64_t n);

/// Rows are grouped in blocks of this many for the reduction of grad_theta, whatever the threads.
constexpr int64_t kThresholdBlockRows = 32;

/// ceil(rows / kThresholdBlockRows).
int64_t threshold_blocks(int64_t rows);

/// Bytes of workspace for threshold_backward and reduce_grad_theta together, one for all threads:
/// one partial per block, or p of them when theta has p entries. float64.
size_t threshold_backward_workspace_bytes(int64_t rows, int64_t p, bool theta_per_entry);

/// grad_theta (float64 for DType::f64, else float32), one value or entries [begin, end) of p: the
/// block partials summed in float64 in block order.
void reduce_grad_theta(DType dtype, const void* workspace, int64_t rows, int64_t p,
                       bool theta_per_entry, void* grad_theta, int64_t begin, int64_t end);

/// The kernels of one ISA level.
struct ThresholdKernels {
    /// out[r, j] = h(u[r, j]; theta[j]) for the rows of the range. out may be u with the same
    /// stride. Reads p, writes p elements a row; at most 4 flops an element, so bound by memory.
    void (*threshold)(DType dtype, Threshold kind, const void* u, int64_t u_stride,
                      const void* theta, bool theta_per_entry, double sigma, void* out,
                      int64_t out_stride, int64_t p, int64_t row_begin, int64_t row_end);

    /// grad_u[r, j] = c grad_out[r, j], and in workspace one partial sum of e grad_out for each
    /// block of rows in [block_begin, block_end); either may be null, then it is not wanted.
    /// grad_out and u may have row strides; grad_u is contiguous. Reads 2 p, writes p elements a
    /// row.
    void (*backward)(DType dtype, Threshold kind, const void* grad_out, int64_t grad_out_stride,
                     const void* u, int64_t u_stride, const void* theta, bool theta_per_entry,
                     double sigma, void* grad_u, int64_t rows, int64_t p, int64_t block_begin,
                     int64_t block_end, void* workspace);

    /// z [n] rounded to nearest even where `type` is a half type, in place.
    void (*round)(DType type, float* z, int64_t n);
};

/// The kernels of the ISA level in force (see active_isa).
const ThresholdKernels& threshold_kernels();

}  // namespace deepl0
