#include "torch/cuda/thresholds.h"

#include "cuda/launch.h"
#include "torch/cuda/ops.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

cuda::ThresholdKind kind_of(deepl0::ThresholdKind kind) {
    switch (kind) {
        case deepl0::ThresholdKind::hard:
            return cuda::ThresholdKind::hard;
        case deepl0::ThresholdKind::soft:
            return cuda::ThresholdKind::soft;
        case deepl0::ThresholdKind::helu:
            return cuda::ThresholdKind::helu;
        case deepl0::ThresholdKind::ste:
            return cuda::ThresholdKind::ste;
        default:
            return cuda::ThresholdKind::ste_theta;
    }
}

}  // namespace

Thresholds::Thresholds(const char* op, const Tensor& like, const Tensor& theta, int64_t p,
                       double sigma, Threshold kind, int64_t stages)
    : theta_(theta), p_(p), kind_(kind), sigma_(float(sigma)) {
    check_sigma(op, sigma);
    const int64_t d = theta.dim();
    STD_TORCH_CHECK(d == 0 || (d == 1 && theta.size(0) == p) ||
                        (d == 2 && stages > 0 && theta.size(0) == stages && theta.size(1) == p),
                    op, ": theta must be [] or [p]", stages > 0 ? " or [num_stages, p]" : "");
    STD_TORCH_CHECK(theta.scalar_type() == ScalarType::Float, op, ": theta must be float32");
    same_device(like, theta, "theta");
    theta_ = dense(theta);
    data_ = data_of<float>(theta_);
}

cuda::Threshold Thresholds::of_stage(int64_t k) const {
    const float* theta = per_stage() && data_ ? data_ + k * p_ : data_;
    return {kind_of(kind_.kind), kind_.positive, sigma_, theta, per_entry() ? 1 : 0};
}

GradientOfTheta::GradientOfTheta(const Thresholds& thresholds, int64_t rows, int64_t p,
                                 Workspace& workspace)
    : thresholds_(thresholds), rows_(rows), p_(p) {
    const int64_t floats = cuda::threshold_partials(rows, p);
    const int64_t partial_rows = p == 0 ? 0 : floats / p;
    partials_ = workspace.floats(floats);
    row_ = workspace.floats(p);
    sums_ = workspace.floats(
        std::max(cuda::column_sums_workspace(partial_rows, p), cuda::column_sums_workspace(p, 1)));
}

void GradientOfTheta::into(cuda::ThresholdBackward& a, const Workspace& workspace) {
    a.partials = workspace.at<float>(partials_);
    a.add_partials = begun_;
    begun_ = true;
}

void GradientOfTheta::sum(float* out, const Workspace& workspace, cudaStream_t stream) {
    const int64_t partial_rows = p_ == 0 ? 0 : cuda::threshold_partials(rows_, p_) / p_;
    auto* sums = workspace.at<float>(sums_);
    auto* row = thresholds_.per_entry() ? out : workspace.at<float>(row_);
    cuda::column_sums(workspace.at<float>(partials_), partial_rows, p_, cuda::DType::f32, row, sums,
                      stream);
    if (!thresholds_.per_entry())
        cuda::column_sums(row, p_, 1, cuda::DType::f32, out, sums, stream);
}

void GradientOfTheta::stage_done(int64_t k, Tensor& out, const Workspace& workspace,
                                 cudaStream_t stream) {
    if (!thresholds_.per_stage()) return;
    auto* data = mutable_data_of<float>(out);
    sum(data ? data + k * p_ : nullptr, workspace, stream);
    begun_ = false;
}

void GradientOfTheta::done(Tensor& out, const Workspace& workspace, cudaStream_t stream) {
    if (!thresholds_.per_stage()) sum(mutable_data_of<float>(out), workspace, stream);
}

Tensor threshold(Tensor u, Tensor theta, double sigma, Threshold kind) {
    const cuda::DType dtype = dtype_of(u, "u");
    Call call(u);
    const Rows rows(u, "u");
    const Thresholds thresholds("threshold", u, theta, rows.cols, sigma, kind);
    Tensor out = empty(u, shape_of(u), u.scalar_type());
    cuda::threshold(thresholds.of_stage(0), dtype, data_of(rows.tensor), rows.stride, rows.rows,
                    rows.cols, dtype, mutable_data_of(out), call.stream());
    return out;
}

std::tuple<Tensor, Tensor> threshold_backward(Tensor grad_out, Tensor u, Tensor theta, double sigma,
                                              Threshold kind, int64_t mask) {
    const cuda::DType dtype = dtype_of(u, "u");
    STD_TORCH_CHECK(shape_of(grad_out) == shape_of(u) && grad_out.scalar_type() == u.scalar_type(),
                    "threshold_backward: grad_out must have the shape and dtype of u");
    same_device(u, grad_out, "grad_out");
    Call call(u);
    const Rows rows(u, "u"), grad(grad_out, "grad_out");
    const Thresholds thresholds("threshold_backward", u, theta, rows.cols, sigma, kind);
    Tensor grad_u = empty_if(wants(mask, 0), u, shape_of(u));
    Tensor grad_theta = wants(mask, 1) ? empty(theta, shape_of(theta), ScalarType::Float)
                                       : empty(theta, {0}, ScalarType::Float);
    Workspace workspace;
    std::optional<GradientOfTheta> of_theta;
    if (wants(mask, 1)) of_theta.emplace(thresholds, rows.rows, rows.cols, workspace);
    if (of_theta) workspace.allocate(u);
    cuda::ThresholdBackward a{};
    a.grad_dtype = a.u_dtype = dtype;
    a.grad = data_of(grad.tensor);
    a.grad_stride = grad.stride;
    a.u = data_of(rows.tensor);
    a.u_stride = rows.stride;
    a.rows = rows.rows;
    a.p = rows.cols;
    a.grad_u_dtype = dtype;
    if (wants(mask, 0)) a.grad_u = mutable_data_of(grad_u);
    if (of_theta) of_theta->into(a, workspace);
    if (mask != 0) cuda::threshold_backward(thresholds.of_stage(0), a, call.stream());
    if (of_theta) of_theta->done(grad_theta, workspace, call.stream());
    return {grad_u, grad_theta};
}

}  // namespace deepl0::torch_ops::on_cuda
