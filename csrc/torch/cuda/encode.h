// Steps that the encoders share on a GPU.
#pragma once

#include "torch/cuda/pass.h"

namespace deepl0::torch_ops::on_cuda {

/// Throws unless the operands fit, are of a dtype that the kernels have, and are on one device.
void check_operands(const char* op, const Tensor& x, const Tensor& w,
                    const std::optional<Tensor>& s, const std::optional<Tensor>& bias,
                    int64_t stages);

/// x W' + b in float32: half types multiply on tensor cores and accumulate in float32. b goes
/// through the product, as its start or its last terms: no pass over [B, p] of its own.
class FirstProduct {
  public:
    FirstProduct(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t rows,
                 Workspace& workspace);
    /// Of the rows x of the operand, at most as many as were named.
    void run(Tensor& out, const Tensor& x, const Workspace& workspace, cudaStream_t stream);

  private:
    Tensor extended(Piece piece, const Tensor& matrix, const Tensor* column,
                    const Workspace& workspace, cudaStream_t stream) const;

    const Tensor& w_;
    const std::optional<Tensor>& bias_;
    int64_t width_ = 0;  // of half types with a bias: columns, whole vectors of them
    Piece x_piece_, w_piece_;
    std::optional<Tensor> extended_w_;
};

/// Bytes of workspace of selections of m from float32 rows [batch, p], `block` of them at a time:
/// the fewer of the last block may go another way.
int64_t selection_bytes(int64_t batch, int64_t block, int64_t p, int64_t m);

}  // namespace deepl0::torch_ops::on_cuda
