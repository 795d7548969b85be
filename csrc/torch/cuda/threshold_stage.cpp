#include "torch/cuda/threshold_stage.h"

#include "cuda/entries.h"
#include "torch/cuda/ops.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

constexpr int64_t kVector = 8;  // elements of 16 bytes

int64_t whole_vectors(int64_t count) { return cuda::ceil_div(count, kVector) * kVector; }

/// W x is multiplied again in every stage, where that is no more work than float32 from and to
/// memory: 2 n flops an entry against 4 bytes, and 4 more once.
constexpr int64_t kMostTermsAgain = 256;

/// The rows of a matrix, or of one of several, in whole vectors: its own memory where it has them,
/// else a copy in the workspace.
class VectorRows {
  public:
    VectorRows(const Tensor& matrix, Workspace& workspace) {
        const int64_t d = matrix.dim(), cols = matrix.size(d - 1);
        const auto in_vectors = [&](int64_t dim) {
            return matrix.size(dim) <= 1 || matrix.stride(dim) % kVector == 0;
        };
        const bool as_it_is = matrix.stride(d - 1) == 1 && in_vectors(d - 2) &&
                              (d == 2 || in_vectors(0)) &&
                              reinterpret_cast<uintptr_t>(data_of(matrix)) % 16 == 0;
        if (!as_it_is && cols > 0)
            piece_ = workspace.bytes(2 * matrix.size(d - 2) * whole_vectors(cols));
    }

    /// `matrix`: that of the constructor, or one of those; the one before is done with.
    void make(const Tensor& matrix, const Workspace& workspace, cudaStream_t stream) {
        rows_.emplace(matrix, "operand");
        data = data_of(rows_->tensor);
        stride = rows_->stride;
        if (piece_.bytes == 0) return;
        // The 1 that is appended where there is room stands behind the last term.
        void* copy = workspace.at<void>(piece_);
        const int64_t width = whole_vectors(rows_->cols);
        cuda::append_column(dtype_of(matrix, "operand"), data, stride, rows_->rows, rows_->cols,
                            nullptr, width, copy, stream);
        data = copy;
        stride = width;
    }

    const void* data = nullptr;
    int64_t stride = 0;

  private:
    Piece piece_;
    std::optional<Rows> rows_;  // keeps memory alive
};

}  // namespace

bool fuses(const Tensor& x) {
    return cuda::fuses_stages() && x.scalar_type() != ScalarType::Float && x.size(0) > 0;
}

bool fuse_stages(bool on) { return cuda::fuse_stages(on); }

void run_stages(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s,
                const std::optional<Tensor>& bias, const Thresholds& thresholds, int64_t stages,
                Tensor& out, Tensor& saved, cudaStream_t stream) {
    const int64_t batch = x.size(0), n = x.size(1), p = w.size(0);
    const bool save = saved.size(0) > 0, again = n <= kMostTermsAgain;
    Workspace workspace;
    VectorRows of_x(x, workspace), of_w(w, workspace);
    std::optional<VectorRows> of_s;
    if (stages > 1) of_s.emplace(*s, workspace);
    // A stage reads one code and writes another.
    const int64_t width = whole_vectors(p);
    Piece codes[2], wx_piece;
    for (int i = 0; i < 2; ++i)
        if (stages > i + 1) codes[i] = workspace.bytes(2 * batch * width);
    if (stages > 1 && !again && !save) wx_piece = workspace.floats(batch * p);
    workspace.allocate(x);

    of_x.make(x, workspace, stream);
    of_w.make(w, workspace, stream);
    std::optional<Tensor> flat;
    if (bias) flat = dense(*bias);
    auto* us = save ? mutable_data_of<float>(saved) : nullptr;
    auto* wx = save ? us : workspace.at<float>(wx_piece);
    const cuda::StageProduct of_signal{of_x.data, of_x.stride, of_w.data, of_w.stride, n};
    for (int64_t k = 0; k < stages; ++k) {
        cuda::ThresholdStage a{};
        a.dtype = dtype_of(x, "x");
        a.rows = batch;
        a.p = p;
        if (k == 0 || again) {
            a.first = of_signal;
            a.bias = flat ? data_of(*flat) : nullptr;
        } else {
            a.wx = wx;
        }
        if (k > 0) {
            if (k == 1 || s->dim() == 3) of_s->make(stage_matrix(*s, k - 1), workspace, stream);
            a.second = {workspace.at<void>(codes[(k - 1) % 2]), width, of_s->data, of_s->stride, p};
        }
        a.u = us ? us + k * batch * p : k == 0 ? wx : nullptr;
        const bool last = k + 1 == stages;
        a.out = last ? mutable_data_of(out) : workspace.at<void>(codes[k % 2]);
        a.out_stride = last ? p : width;
        cuda::threshold_stage(thresholds.of_stage(k), a, stream);
    }
}

}  // namespace deepl0::torch_ops::on_cuda
