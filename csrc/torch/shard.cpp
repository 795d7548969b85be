// One stage over some of the units of a dictionary, those of one shard: u = x W' + bias + z.
#include <tuple>

#include "torch/screen.h"

namespace deepl0::torch_ops {
std::tuple<Tensor, Tensor> shard_top_m(Tensor x, Tensor W, std::optional<Tensor> bias,
                                       Tensor z_values, Tensor z_indices, int64_t m,
                                       bool positive) {
    const char* op = "shard_top_m";
    check_encoder(x, W, std::nullopt, 1, op);
    const int64_t batch = x.size(0), p = W.size(0);
    check_m(m, p);
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32");
    const std::vector<int64_t> code{batch, z_values.dim() == 2 ? z_values.size(1) : 0};
    STD_TORCH_CHECK(shape_of(z_values) == code && shape_of(z_indices) == code && code[1] <= p &&
                        z_values.scalar_type() == ScalarType::Float &&
                        z_indices.scalar_type() == ScalarType::Long,
                    op, ": z must be float32 and int64, [B, w] with w <= p");
    const Bias b(op, bias, x, p);
    const Matrix<const float> xm = row_major_matrix<float>(x), wm = row_major_matrix<float>(W);
    Tensor values = fresh({batch, m}, ScalarType::Float);
    Tensor indices = fresh({batch, m}, ScalarType::Long);
    if (batch == 0 || m == 0) return {values, indices};
    check_indices(z_indices, p, op);
    z_values = torch::stable::contiguous(z_values);
    z_indices = torch::stable::contiguous(z_indices);
    const Screen::Code z{static_cast<float*>(z_values.mutable_data_ptr()),
                         static_cast<int64_t*>(z_indices.mutable_data_ptr()), code[1]};
    for (int64_t e = 1; e < batch * z.m; ++e)
        STD_TORCH_CHECK(e % z.m == 0 || z.indices[e - 1] < z.indices[e], op,
                        ": indices of z must ascend in a row");
    const Screen::Code out{static_cast<float*>(values.mutable_data_ptr()),
                           static_cast<int64_t*>(indices.mutable_data_ptr()), m};
    const Screen screen(wm, b.data<float>(), batch, m);
    torch::stable::parallel_for(0, batch, 32, [&](int64_t begin, int64_t end) {
        screen.rows(xm.range(begin, end), z.from(begin), positive, out.from(begin));
    });
    return {values, indices};
}

}  // namespace deepl0::torch_ops
