#include "torch/cuda/encode.h"

#include "cuda/entries.h"
#include "cuda/top_m.h"

namespace deepl0::torch_ops::on_cuda {

void check_operands(const char* op, const Tensor& x, const Tensor& w,
                    const std::optional<Tensor>& s, const std::optional<Tensor>& bias,
                    int64_t stages) {
    dtype_of(x, "x");
    check_encoder(x, w, s, stages, op);
    same_device(x, w, "W");
    if (s) same_device(x, *s, "S");
    if (!bias) return;
    same_device(x, *bias, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == w.size(0), op, ": bias must be [p]");
    STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type(), op, ": bias has not the dtype of x");
}

FirstProduct::FirstProduct(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                           int64_t rows, Workspace& workspace)
    : w_(w), bias_(bias) {
    if (!bias || x.scalar_type() == ScalarType::Float) return;
    // No product of half types takes a bias and gives float32 in every version of torch. So b is a
    // column of W, and zeros up to rows of whole vectors; b times 1 is exact.
    width_ = x.size(1) + 8 - x.size(1) % 8;
    x_piece_ = workspace.bytes(2 * rows * width_);
    w_piece_ = workspace.bytes(2 * w.size(0) * width_);
}

Tensor FirstProduct::extended(Piece piece, const Tensor& matrix, const Tensor* column,
                              const Workspace& workspace, cudaStream_t stream) const {
    const Rows rows(matrix, "operand");
    std::optional<Tensor> flat;
    if (column) flat = dense(*column);
    cuda::append_column(dtype_of(matrix, "operand"), data_of(rows.tensor), rows.stride, rows.rows,
                        rows.cols, flat ? data_of(*flat) : nullptr, width_,
                        workspace.at<void>(piece), stream);
    return workspace.matrix(piece, rows.rows, width_, matrix.scalar_type());
}

void FirstProduct::run(Tensor& out, const Tensor& x, const Workspace& workspace,
                       cudaStream_t stream) {
    if (width_ > 0) {
        if (!extended_w_) extended_w_ = extended(w_piece_, w_, &*bias_, workspace, stream);
        product(out, extended(x_piece_, x, nullptr, workspace, stream), transposed(*extended_w_));
    } else if (bias_) {
        add_product(out, *bias_, x, transposed(w_));
    } else {
        product(out, x, transposed(w_));
    }
}

int64_t selection_bytes(int64_t batch, int64_t block, int64_t p, int64_t m) {
    const auto bytes = [&](int64_t rows) {
        return int64_t(cuda::top_m_workspace_bytes(cuda::DType::f32, rows, p, m, /*keep=*/false));
    };
    return block == 0 ? 0 : std::max(bytes(block), bytes(batch % block));
}

}  // namespace deepl0::torch_ops::on_cuda
