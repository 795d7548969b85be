// Stages of the encoder of thresholds in half types, one kernel each (cuda/threshold_stage.h).
#pragma once

#include "cuda/threshold_stage.h"
#include "torch/cuda/thresholds.h"

namespace deepl0::torch_ops::on_cuda {

/// Whether an encoder's stages are one kernel each: of half types, and asked for.
bool fuses(const Tensor& x);

/// out [B, p] of x's type, and where saved is not empty [K, B, p] the pre-activations of all
/// stages. Operands as check_operands passed them, of a half type.
void run_stages(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s,
                const std::optional<Tensor>& bias, const Thresholds& thresholds, int64_t stages,
                Tensor& out, Tensor& saved, cudaStream_t stream);

}  // namespace deepl0::torch_ops::on_cuda
