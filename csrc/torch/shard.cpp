// One stage over some of the units of a dictionary, those of one shard: u = x W' + bias + z.
#include <tuple>

#include "torch/screen.h"

namespace deepl0::torch_ops {
namespace {

/// z with units in the place of its absent entries, which are < 0 and stand at the end of a row:
/// distinct ones that the row does not hold, in ascending order, to which -0 is added.
void complete(float* values, int64_t* indices, int64_t rows, int64_t m) {
    std::vector<std::pair<int64_t, float>> row;
    for (int64_t r = 0; r < rows; ++r, values += m, indices += m) {
        int64_t present = 0;
        while (present < m && indices[present] >= 0) ++present;
        if (present == m) continue;
        row.clear();
        for (int64_t j = 0; j < present; ++j) row.emplace_back(indices[j], values[j]);
        for (int64_t unit = 0, j = 0; int64_t(row.size()) < m; ++unit) {
            while (j < present && indices[j] < unit) ++j;
            if (j == present || indices[j] != unit) row.emplace_back(unit, -0.0f);
        }
        std::sort(row.begin(), row.end(),
                  [](const auto& a, const auto& b) { return a.first < b.first; });
        for (int64_t j = 0; j < m; ++j) std::tie(indices[j], values[j]) = row[size_t(j)];
    }
}

}  // namespace

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
    z_values = torch::stable::clone(torch::stable::contiguous(z_values));
    z_indices = torch::stable::clone(torch::stable::contiguous(z_indices));
    const Screen::Code z{static_cast<float*>(z_values.mutable_data_ptr()),
                         static_cast<int64_t*>(z_indices.mutable_data_ptr()), code[1]};
    for (int64_t e = 0; e < batch * z.m; ++e)
        STD_TORCH_CHECK(z.indices[e] < p, op, ": an index of z must be below p = ", p, ", got ",
                        z.indices[e]);
    complete(z.values, z.indices, batch, z.m);
    const Screen::Code out{static_cast<float*>(values.mutable_data_ptr()),
                           static_cast<int64_t*>(indices.mutable_data_ptr()), m};
    const Screen screen(wm, b.data<float>(), batch, m);
    torch::stable::parallel_for(0, batch, 32, [&](int64_t begin, int64_t end) {
        screen.rows(xm.range(begin, end), z.from(begin), positive, out.from(begin));
    });
    return {values, indices};
}

}  // namespace deepl0::torch_ops
