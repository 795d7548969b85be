#include "torch/cuda/screen.h"

#include "cuda/top_m.h"
#include "torch/cuda/encode.h"
#include "torch/cuda/ops.h"
#include "torch/cuda/rules.h"

namespace deepl0::torch_ops::on_cuda {

bool screens(const Tensor& x, const Tensor& w, int64_t m) {
    return cuda::screens_stages() && x.scalar_type() == ScalarType::Float && x.size(0) > 0 &&
           cuda::screening_serves(x.size(1), w.size(0), m);
}

Screen::Screen(const Tensor& w, const std::optional<Tensor>& bias, int64_t rows,
               Workspace& workspace)
    : w_(w, "W"),
      piece_(workspace.bytes(int64_t(cuda::screen_workspace_bytes(rows, w_.cols, w_.rows)))) {
    if (bias) bias_ = dense(*bias);
}

void Screen::run(cuda::ScreenedTopM stage, const Workspace& workspace, cudaStream_t stream) {
    stage.w = data_of<float>(w_.tensor);
    stage.w_stride = w_.stride;
    stage.bias = bias_ ? data_of<float>(*bias_) : nullptr;
    stage.n = w_.cols;
    stage.p = w_.rows;
    void* memory = workspace.at<void>(piece_);
    if (!rounded_) cuda::screen_units(stage, memory, stream);
    rounded_ = true;
    cuda::screened_top_m(stage, memory, stream);
}

void screen(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t m,
            bool positive, Tensor& values, Tensor& indices, cudaStream_t stream,
            const std::optional<Tensor>& z_values, const std::optional<Tensor>& z_indices) {
    const int64_t batch = x.size(0);
    const int64_t block = std::min(batch, std::max<int64_t>(1, most_elements() / w.size(0)));
    const Rows rows(x, "x");
    Workspace workspace;
    Screen stages(w, bias, block, workspace);
    workspace.allocate(x);
    cuda::ScreenedTopM a{};
    a.x = data_of<float>(rows.tensor);
    a.x_stride = rows.stride;
    a.m = m;
    a.positive = positive;
    a.values = mutable_data_of<float>(values);
    a.indices = mutable_data_of<int64_t>(indices);
    if (z_values) {
        a.z_values = data_of<float>(*z_values);
        a.z_indices = data_of<int64_t>(*z_indices);
        a.z_m = z_values->size(1);
    }
    for (int64_t row = 0; row < batch; row += block) {
        a.rows = std::min(block, batch - row);
        stages.run(a, workspace, stream);
        if (!a.x) continue;  // of tensors without data
        a.x += a.rows * a.x_stride;
        a.values += a.rows * m;
        a.indices += a.rows * m;
        if (!z_values) continue;
        a.z_values += a.rows * a.z_m;
        a.z_indices += a.rows * a.z_m;
    }
}

bool screen_stages(bool on) { return cuda::screen_stages(on); }

std::tuple<Tensor, Tensor> screened_top_m(Tensor x, Tensor w, std::optional<Tensor> bias, int64_t m,
                                          bool positive, std::optional<Tensor> z_values,
                                          std::optional<Tensor> z_indices) {
    check_operands("screened_top_m", x, w, std::nullopt, bias, 1);
    const int64_t batch = x.size(0), n = x.size(1), p = w.size(0);
    check_m(m, p);
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && 0 < m && m <= cuda::kMostScreened &&
                        0 < n && n <= cuda::kMostTerms && p <= cuda::kMostEntries,
                    "screened_top_m: float32, 0 < m <= ", cuda::kMostScreened,
                    ", 0 < n <= ", cuda::kMostTerms);
    Call call(x);
    Tensor values = empty(x, {batch, m}, ScalarType::Float);
    Tensor indices = empty(x, {batch, m}, ScalarType::Long);
    if (z_values) {
        const int64_t z_m = z_values->size(1);
        STD_TORCH_CHECK(z_indices && shape_of(*z_values) == std::vector<int64_t>({batch, z_m}) &&
                            shape_of(*z_indices) == shape_of(*z_values) &&
                            z_m <= cuda::kMostScreened && p <= cuda::kMostUnitsOfZ,
                        "screened_top_m: values and indices must be [B, z_m]");
        z_values = like(x, *z_values, ScalarType::Float, "values");
        z_indices = like(x, *z_indices, ScalarType::Long, "indices");
    }
    screen(x, w, bias, m, positive, values, indices, call.stream(), z_values, z_indices);
    return {values, indices};
}

}  // namespace deepl0::torch_ops::on_cuda
