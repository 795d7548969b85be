#include "core/least_squares.h"

#include "torch/bindings.h"
#include "torch/buffer.h"

namespace deepl0::torch_ops {
namespace {

/// Rows per task that make a task worth a thread.
int64_t grain(int64_t s) {
    const double flops = double(s) * double(s) * double(s + 30) / 3;
    return int64_t(std::clamp(2e5 / flops, 1.0, 1e6));
}

}  // namespace

Tensor least_squares(Tensor gram, Tensor right, Tensor support, double floor) {
    STD_TORCH_CHECK(gram.dim() == 2 && gram.size(0) == gram.size(1),
                    "least_squares: gram must be [p, p]");
    STD_TORCH_CHECK(right.dim() == 2 && shape_of(right) == shape_of(support),
                    "least_squares: right and support must be [B, s], alike");
    STD_TORCH_CHECK(
        gram.scalar_type() == ScalarType::Double && right.scalar_type() == ScalarType::Double,
        "least_squares: gram and right must be float64");
    STD_TORCH_CHECK(support.scalar_type() == ScalarType::Long,
                    "least_squares: support must be int64");
    STD_TORCH_CHECK(floor >= 0, "least_squares: floor must be >= 0, got ", floor);
    const int64_t p = gram.size(0);
    const Rows rows(right, "right"), places(support, "support");
    const auto* at = static_cast<const int64_t*>(places.data);
    for (int64_t r = 0; r < places.rows; ++r) {
        const int64_t* row = at + r * places.stride;
        bool outside = false;
        for (int64_t i = 0; i < places.cols; ++i) outside |= row[i] < -1 || row[i] >= p;
        if (!outside) continue;
        const int64_t bad =
            *std::find_if(row, row + places.cols, [&](int64_t i) { return i < -1 || i >= p; });
        STD_TORCH_CHECK(false, "least_squares: support must be in [0, ", p, "), or -1, got ", bad);
    }
    Tensor z = empty(right, shape_of(right), ScalarType::Double);
    if (z.numel() == 0) return z;
    const Rows matrix(gram, "gram");
    const LeastSquares problem{
        static_cast<const double*>(matrix.data),   matrix.stride, floor, rows.cols,
        static_cast<const double*>(rows.data),     rows.stride,   at,    places.stride,
        static_cast<double*>(z.mutable_data_ptr())};
    torch::stable::parallel_for(0, rows.rows, grain(rows.cols), [&](int64_t begin, int64_t end) {
        const Buffer<char> workspace(least_squares_workspace(rows.cols));
        least_squares_kernels().solve(problem, begin, end, workspace.get());
    });
    return z;
}

}  // namespace deepl0::torch_ops
