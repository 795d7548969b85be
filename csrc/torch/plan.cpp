#include "torch/plan.h"

#include "torch/planned.h"

namespace deepl0::torch_ops {

struct Plan::Weights : KeptWeights {};

namespace {

Tensor tensor_of(const float* data, const std::vector<int64_t>& sizes,
                 const std::vector<int64_t>& strides) {
    const int64_t d = int64_t(sizes.size());
    return torch::stable::from_blob(
        const_cast<float*>(data), {sizes.data(), sizes.size()}, {strides.data(), size_t(d)},
        torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Float);
}

std::optional<Tensor> tensor_of(const PlanMatrix& m) {
    if (!m.data) return std::nullopt;
    if (m.per_step)
        return tensor_of(m.data, {m.count, m.rows, m.cols}, {m.stride, m.row_stride, m.col_stride});
    return tensor_of(m.data, {m.rows, m.cols}, {m.row_stride, m.col_stride});
}

}  // namespace

Plan::Plan(const PlanMatrix& w, const PlanMatrix& s, const PlanMatrix& d, const float* bias,
           DType code)
    : weights_(new Weights{{{w.data, w.rows, w.cols, w.row_stride, w.col_stride},
                            tensor_of(s),
                            tensor_of(d),
                            bias,
                            code,
                            {}}}) {}

Plan::~Plan() = default;

void Plan::encode_top_m(const float* x, int64_t rows, const std::vector<int64_t>& m,
                        const std::vector<float>& steps, bool factored, bool positive,
                        float* values, int64_t* indices) const {
    const Matrix<const float> xm = row_major(x, rows, weights_->w.cols);
    if (factored)
        planned_top_m_factored(*weights_, xm, m, steps, positive, values, indices);
    else
        planned_top_m(*weights_, xm, m.back(), int64_t(m.size()), positive, values, indices);
}

void Plan::encode_l0(const float* x, int64_t rows, const PlanThresholds& theta, int64_t stages,
                     const std::vector<float>& steps, bool factored, float* z) const {
    const int64_t p = weights_->w.rows;
    std::vector<int64_t> sizes, strides;
    if (theta.dims == 2) {
        sizes.push_back(stages);
        strides.push_back(p);
    }
    if (theta.dims >= 1) {
        sizes.push_back(p);
        strides.push_back(1);
    }
    const StageThresholds h("encode_l0", tensor_of(theta.data, sizes, strides), stages, p,
                            weights_->code, theta.sigma, threshold_kind(theta.kind));
    const Matrix<const float> xm = row_major(x, rows, weights_->w.cols);
    if (factored)
        planned_l0_factored(*weights_, xm, h, steps, z);
    else
        planned_l0(*weights_, xm, h, stages, z);
}

int64_t Plan::bytes() const { return weights_->kept.bytes(); }

}  // namespace deepl0::torch_ops
