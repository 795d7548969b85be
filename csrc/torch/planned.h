// The encoders over kept weights, each defined beside its operator; Plan calls them.
#pragma once

#include "torch/kept.h"
#include "torch/matrix.h"
#include "torch/stage_thresholds.h"

namespace deepl0::torch_ops {

/// Weights of a plan, checked: W [p, n] with unit column stride.
struct KeptWeights {
    Matrix<const float> w;
    std::optional<Tensor> s, d;
    const float* bias;
    DType code;  // of the operands given, which codes are rounded to
    mutable Kept kept;
};

void planned_top_m(const KeptWeights& weights, Matrix<const float> x, int64_t m, int64_t stages,
                   bool positive, float* values, int64_t* indices);
void planned_top_m_factored(const KeptWeights& weights, Matrix<const float> x,
                            const std::vector<int64_t>& m, const std::vector<float>& steps,
                            bool positive, float* values, int64_t* indices);
void planned_l0(const KeptWeights& weights, Matrix<const float> x, const StageThresholds& h,
                int64_t stages, float* z);
void planned_l0_factored(const KeptWeights& weights, Matrix<const float> x,
                         const StageThresholds& h, const std::vector<float>& steps, float* z);

}  // namespace deepl0::torch_ops
