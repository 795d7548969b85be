// Stages of the M-sparse encoder by screening (cuda/screen.h).
#pragma once

#include "cuda/screen.h"
#include "torch/cuda/pass.h"

namespace deepl0::torch_ops::on_cuda {

/// Whether a stage of m entries is screened: float32, of a size that this serves, and asked for.
bool screens(const Tensor& x, const Tensor& w, int64_t m);

/// The stages of one W, for at most `rows` rows at a time: W is rounded when the first one runs.
/// Beside W in bfloat16 it holds p / 2 bytes a row. W and bias are float32.
class Screen {
  public:
    Screen(const Tensor& w, const std::optional<Tensor>& bias, int64_t rows, Workspace& workspace);
    /// `stage`: all but what is of W.
    void run(cuda::ScreenedTopM stage, const Workspace& workspace, cudaStream_t stream);

  private:
    Rows w_;
    std::optional<Tensor> bias_;
    Piece piece_;
    bool rounded_ = false;
};

/// values and indices [batch, m]: the code of x W' + b + z, z contiguous if there is one. Operands
/// as check_operands passed them, float32; 0 < m <= p. As many rows are held as most_elements() has
/// W x of.
void screen(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t m,
            bool positive, Tensor& values, Tensor& indices, cudaStream_t stream,
            const std::optional<Tensor>& z_values = std::nullopt,
            const std::optional<Tensor>& z_indices = std::nullopt);

}  // namespace deepl0::torch_ops::on_cuda
