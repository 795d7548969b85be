// Orthogonal matching pursuit in the gram form: D'D and D'x by torch's products, then a block a
// signal (cuda/omp.h).
#include "cuda/omp.h"

#include "torch/cuda/ops.h"
#include "torch/cuda/pass.h"
#include "torch/cuda/rules.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

/// A view of the first columns of a matrix [rows, ld].
Tensor first_columns(const Tensor& matrix, int64_t columns) {
    return view(matrix, matrix.size(0), columns, matrix.size(1), 1);
}

}  // namespace

/// Bytes: x, D, 8 p^2 of D'D and 8 B p of D'x, of which 1 GB is held at a time; then cuda/omp.h.
std::tuple<Tensor, Tensor, Tensor, Tensor> omp(Tensor x, Tensor d, int64_t m, double tol,
                                               bool positive) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && d.scalar_type() == ScalarType::Float,
                    "omp: x and D must be float32 for the CUDA kernel");
    STD_TORCH_CHECK(x.dim() == 2 && d.dim() == 2 && x.size(1) == d.size(0),
                    "omp: x [B, n] and D [n, p] do not fit");
    same_device(x, d, "D");
    const int64_t batch = x.size(0), n = d.size(0), p = d.size(1), ld = (p + 3) / 4 * 4;
    STD_TORCH_CHECK(1 <= m && m <= std::min(n, p), "omp: m must be in [1, ", std::min(n, p),
                    "], got ", m);
    STD_TORCH_CHECK(p <= cuda::kMostAtoms && m <= cuda::kMostChosen,
                    "omp: the CUDA kernel takes p <= ", cuda::kMostAtoms,
                    " and m <= ", cuda::kMostChosen, ", got p = ", p, " and m = ", m);
    STD_TORCH_CHECK(n <= INT32_MAX, "omp: n must be below 2^31, got ", n);
    Call call(x);
    Tensor values = empty(x, {batch, m}, ScalarType::Float);
    Tensor indices = empty(x, {batch, m}, ScalarType::Long);
    Tensor count = empty(x, {batch}, ScalarType::Long);
    Tensor objective = empty(x, {m + 1, batch}, ScalarType::Float);
    if (batch == 0) return {values, indices, count, objective};

    const int64_t block = std::min(batch, std::max<int64_t>(1, most_elements() / ld));
    Workspace workspace;
    const Piece gram_piece = workspace.floats(p * ld), alpha_piece = workspace.floats(block * ld);
    workspace.allocate(x);
    Tensor gram = first_columns(workspace.matrix(gram_piece, p, ld), p);
    product(gram, transposed(d), d);
    const Rows rows(x, "x");
    cuda::Omp a{};
    a.x_stride = rows.stride;
    a.alpha = workspace.at<float>(alpha_piece);
    a.gram = workspace.at<float>(gram_piece);
    a.n = int(n);
    a.p = int(p);
    a.ld = int(ld);
    a.m = int(m);
    a.tol = float(tol);
    a.objective_stride = batch;
    a.stream = call.stream();
    const auto from = [](auto* data, int64_t offset) { return data ? data + offset : nullptr; };
    for (int64_t row = 0; row < batch; row += block) {
        a.rows = std::min(block, batch - row);
        Tensor alpha = first_columns(workspace.matrix(alpha_piece, a.rows, ld), p);
        product(alpha, rows_of(rows.tensor, row, a.rows), d);
        a.x = from(data_of<float>(rows.tensor), row * rows.stride);
        a.values = from(mutable_data_of<float>(values), row * m);
        a.indices = from(mutable_data_of<int64_t>(indices), row * m);
        a.count = from(mutable_data_of<int64_t>(count), row);
        a.objective = from(mutable_data_of<float>(objective), row);
        positive ? cuda::omp_positive(a) : cuda::omp(a);
    }
    return {values, indices, count, objective};
}

}  // namespace deepl0::torch_ops::on_cuda
