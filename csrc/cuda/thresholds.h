// Elementwise thresholds on the GPU, and sums over the rows of a matrix, which their derivative in
// theta is.
//
// Values and derivatives as in core/thresholds.h, with theta's values unread by the host: a theta
// that is not allowed is not refused, and a NaN gives NaN. Rows may be strided where that is said,
// all else is contiguous. Deterministic: every sum has one order, which the rows alone decide.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

enum class ThresholdKind : int { hard, soft, helu, ste, ste_theta };

/// A function of u and theta, and which thetas it reads: theta[theta_step * column].
struct Threshold {
    ThresholdKind kind;
    bool positive;  // that of max(u, 0)
    float sigma;
    const float* theta;
    int theta_step;  // 0 or 1
};

/// out[r, j] = h(u[r, j]). u is float32, or out is of its dtype. Bytes: a read and a write.
void threshold(const Threshold& h, DType u_dtype, const void* u, int64_t u_stride, int64_t rows,
               int64_t p, DType out_dtype, void* out, cudaStream_t stream);

/// out[r, j] = h(u[r, j] + wx[r, j]), all contiguous, out of a half type; the sum to u where it is
/// kept. Bytes: two reads and a write, and that of u.
void threshold_of_sum(const Threshold& h, float* u, const float* wx, bool keep, int64_t rows,
                      int64_t p, DType out_dtype, void* out, cudaStream_t stream);

/// Floats of one partial sum of the gradient of theta: a row of p for every 32 rows of u.
int64_t threshold_partials(int64_t rows, int64_t p);

struct ThresholdBackward {
    DType grad_dtype;  // float32 where u_dtype is another; u_dtype, or any where that is float32
    const void* grad;
    int64_t grad_stride;
    DType u_dtype;
    const void* u;
    int64_t u_stride;
    int64_t rows, p;
    DType grad_u_dtype;  // u_dtype; that of grad where u_dtype is float32, or any where both are
    void* grad_u;        // or null
    float* total;        // += grad_u, or null; float32 alone
    bool add_total;      // false: total = grad_u
    float* partials;     // threshold_partials of them, or null: += the gradient of theta
    bool add_partials;
};

/// grad_u = grad h'(u), and the sums over 32 rows of grad dh / dtheta. Bytes: grad and u read, what
/// is wanted written.
void threshold_backward(const Threshold& h, const ThresholdBackward& a, cudaStream_t stream);

/// Floats of workspace of column_sums.
int64_t column_sums_workspace(int64_t rows, int64_t p);

/// out[j] = sum of in[0..rows, j], of `dtype`: sums of 64 rows, and of 64 of these. One read of in.
void column_sums(const float* in, int64_t rows, int64_t p, DType dtype, void* out, float* workspace,
                 cudaStream_t stream);

}  // namespace deepl0::cuda
