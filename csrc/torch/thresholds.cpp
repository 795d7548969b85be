#include "core/thresholds.h"

#include "torch/bindings.h"
#include "torch/buffer.h"

namespace deepl0::torch_ops {

namespace {

void check_operands(const char* op, const Tensor& u, const Tensor& theta, double sigma) {
    const int64_t p = last_size(u, "u");
    check_sigma(op, sigma);
    STD_TORCH_CHECK(theta.scalar_type() == accumulation_type(u),
                    "theta must be float64 for a float64 u and float32 otherwise");
    STD_TORCH_CHECK(theta.dim() == 0 || (theta.dim() == 1 && theta.size(0) == p),
                    "theta must have shape [] or [p] = [", p, "]");
}

}  // namespace

Tensor threshold(Tensor u, Tensor theta, double sigma, Threshold kind) {
    check_operands("threshold", u, theta, sigma);
    theta = torch::stable::contiguous(theta);
    check_theta("threshold", kind, theta);
    const Rows rows(u, "u");
    Tensor out = empty(u, shape_of(u), u.scalar_type());
    const DType dtype = dtype_of(u, "u");
    void* out_data = out.mutable_data_ptr();
    torch::stable::parallel_for(0, rows.rows, grain_rows(rows.cols), [&](int64_t lo, int64_t hi) {
        threshold_kernels().threshold(dtype, kind, rows.data, rows.stride, theta.const_data_ptr(),
                                      theta.dim() == 1, sigma, out_data, rows.cols, rows.cols, lo,
                                      hi);
    });
    return out;
}

std::tuple<Tensor, Tensor> threshold_backward(Tensor grad, Tensor u, Tensor theta, double sigma,
                                              Threshold kind, int64_t mask) {
    check_operands("threshold_backward", u, theta, sigma);
    const auto shape = shape_of(u);
    STD_TORCH_CHECK(shape_of(grad) == shape && grad.scalar_type() == u.scalar_type(),
                    "grad_out must have the shape and dtype of u");
    theta = torch::stable::contiguous(theta);
    check_theta("threshold_backward", kind, theta);
    const Rows g(grad, "grad_out"), rows(u, "u");
    const bool per_entry = theta.dim() == 1;
    const DType dtype = dtype_of(u, "u");
    const bool need_u = wants(mask, 0), need_theta = wants(mask, 1);
    Tensor grad_u = empty_if(need_u, u, shape);
    Tensor grad_theta = empty_if(need_theta, theta, shape_of(theta));
    if (!need_u && !need_theta) return {grad_u, grad_theta};
    void* grad_u_data = need_u ? grad_u.mutable_data_ptr() : nullptr;
    const Buffer<char> workspace(
        need_theta ? int64_t(threshold_backward_workspace_bytes(rows.rows, rows.cols, per_entry))
                   : 0);
    void* partials = need_theta ? workspace.get() : nullptr;
    const int64_t grain = std::max<int64_t>(1, grain_rows(rows.cols) / kThresholdBlockRows);
    torch::stable::parallel_for(0, threshold_blocks(rows.rows), grain, [&](int64_t lo, int64_t hi) {
        threshold_kernels().backward(dtype, kind, g.data, g.stride, rows.data, rows.stride,
                                     theta.const_data_ptr(), per_entry, sigma, grad_u_data,
                                     rows.rows, rows.cols, lo, hi, partials);
    });
    if (!need_theta) return {grad_u, grad_theta};
    void* grad_theta_data = grad_theta.mutable_data_ptr();
    torch::stable::parallel_for(0, theta.numel(), 1024, [&](int64_t lo, int64_t hi) {
        reduce_grad_theta(dtype, partials, rows.rows, rows.cols, per_entry, grad_theta_data, lo,
                          hi);
    });
    return {grad_u, grad_theta};
}

}  // namespace deepl0::torch_ops
