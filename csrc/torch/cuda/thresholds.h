// What the threshold and the encoder of thresholds share.
#pragma once

#include "cuda/thresholds.h"
#include "torch/cuda/pass.h"

namespace deepl0::torch_ops::on_cuda {

/// A kind of threshold with its thetas: [], [p], or [stages, p] where that many are said.
class Thresholds {
  public:
    Thresholds(const char* op, const Tensor& like, const Tensor& theta, int64_t p, double sigma,
               Threshold kind, int64_t stages = 0);

    cuda::Threshold of_stage(int64_t k) const;
    bool per_stage() const { return theta_.dim() == 2; }
    bool per_entry() const { return theta_.dim() > 0; }

  private:
    Tensor theta_;
    const float* data_;
    int64_t p_;
    deepl0::Threshold kind_;
    float sigma_;
};

/// The gradient of theta: partial sums of rows, added up over stages, then summed.
class GradientOfTheta {
  public:
    GradientOfTheta(const Thresholds& thresholds, int64_t rows, int64_t p, Workspace& workspace);
    /// Where a stage adds its partial sums.
    void into(cuda::ThresholdBackward& a, const Workspace& workspace);
    /// After the stage k that was added last: of thetas of their own, done with.
    void stage_done(int64_t k, Tensor& out, const Workspace& workspace, cudaStream_t stream);
    /// After all stages.
    void done(Tensor& out, const Workspace& workspace, cudaStream_t stream);

  private:
    void sum(float* out, const Workspace& workspace, cudaStream_t stream);

    const Thresholds& thresholds_;
    int64_t rows_, p_;
    bool begun_ = false;
    Piece partials_, row_, sums_;
};

}  // namespace deepl0::torch_ops::on_cuda
