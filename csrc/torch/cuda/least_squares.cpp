// Least squares on supports by the Gram matrix, a block a system (cuda/least_squares.h).
#include "cuda/least_squares.h"

#include "torch/cuda/ops.h"

namespace deepl0::torch_ops::on_cuda {

/// Bytes: cuda/least_squares.h. An index that is out of range stops the kernel.
Tensor least_squares(Tensor gram, Tensor right, Tensor support, double floor) {
    STD_TORCH_CHECK(
        gram.scalar_type() == ScalarType::Double && right.scalar_type() == ScalarType::Double,
        "least_squares: gram and right must be float64");
    STD_TORCH_CHECK(support.scalar_type() == ScalarType::Long,
                    "least_squares: support must be int64");
    STD_TORCH_CHECK(gram.dim() == 2 && gram.size(0) == gram.size(1),
                    "least_squares: gram must be [p, p]");
    STD_TORCH_CHECK(right.dim() == 2 && shape_of(right) == shape_of(support),
                    "least_squares: right and support must be [B, s], alike");
    STD_TORCH_CHECK(floor >= 0, "least_squares: floor must be >= 0, got ", floor);
    same_device(gram, right, "right");
    same_device(gram, support, "support");
    const int64_t p = gram.size(0), s = right.size(1);
    STD_TORCH_CHECK(p <= INT32_MAX, "least_squares: p must be below 2^31, got ", p);
    STD_TORCH_CHECK(s <= cuda::kMostPlaces,
                    "least_squares: the CUDA kernel takes s <= ", cuda::kMostPlaces, ", got ", s);
    Call call(gram);
    Tensor z = empty(right, shape_of(right), ScalarType::Double);
    if (z.numel() == 0) return z;
    const Rows matrix(gram, "gram"), rows(right, "right"), places(support, "support");
    cuda::LeastSquares a{};
    a.gram = data_of<double>(matrix.tensor);
    a.ld = matrix.stride;
    a.p = p;
    a.floor = floor;
    a.right = data_of<double>(rows.tensor);
    a.right_stride = rows.stride;
    a.support = data_of<int64_t>(places.tensor);
    a.support_stride = places.stride;
    a.rows = rows.rows;
    a.s = int(s);
    a.z = mutable_data_of<double>(z);
    a.stream = call.stream();
    cuda::least_squares(a);
    return z;
}

}  // namespace deepl0::torch_ops::on_cuda
