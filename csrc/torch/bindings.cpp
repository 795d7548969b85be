#include "torch/bindings.h"

namespace deepl0::torch_ops {

namespace {

// Whether the leading dimensions can be walked with one stride; if so, that stride.
std::optional<int64_t> row_stride(const Tensor& t) {
    const auto sizes = t.sizes();
    const auto strides = t.strides();
    const int64_t last = t.dim() - 1;
    if (sizes[last] > 1 && strides[last] != 1) return std::nullopt;
    std::optional<int64_t> stride;
    int64_t inner = 0;  // size of the dimension that was last seen
    int64_t expected = 0;
    for (int64_t i = last - 1; i >= 0; --i) {
        if (sizes[i] == 1) continue;
        if (!stride) {
            stride = strides[i];
        } else if (strides[i] != expected * inner) {
            return std::nullopt;
        }
        expected = strides[i];
        inner = sizes[i];
    }
    return stride.value_or(sizes[last]);
}

}  // namespace

Rows::Rows(const Tensor& t, const char* name) : tensor(t) {
    cols = last_size(t, name);
    rows = 1;
    for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.size(i);
    if (const auto found = rows == 0 || cols == 0 ? std::optional<int64_t>(cols) : row_stride(t)) {
        stride = *found;
    } else {
        tensor = torch::stable::contiguous(t);
        stride = cols;
    }
    data = tensor.const_data_ptr();
}

ThresholdKind threshold_kind(const std::string& name) {
    if (name == "hard") return ThresholdKind::hard;
    if (name == "soft") return ThresholdKind::soft;
    if (name == "helu") return ThresholdKind::helu;
    if (name == "ste") return ThresholdKind::ste;
    if (name == "ste_theta") return ThresholdKind::ste_theta;
    STD_TORCH_CHECK(false, "kind must be hard, soft, helu, ste or ste_theta, got ", name);
}

void check_sigma(const char* op, double sigma) {
    STD_TORCH_CHECK(sigma >= 0 && sigma <= 1, op, ": sigma must be in [0, 1], got ", sigma);
}

void check_theta(const char* op, ThresholdKind kind, const Tensor& theta) {
    const int64_t bad =
        first_bad_theta(dtype_of(theta, "theta"), kind, theta.const_data_ptr(), theta.numel());
    if (bad < 0) return;
    const double value = theta.scalar_type() == ScalarType::Double
                             ? static_cast<const double*>(theta.const_data_ptr())[bad]
                             : static_cast<const float*>(theta.const_data_ptr())[bad];
    const bool zero = kind == ThresholdKind::hard || kind == ThresholdKind::soft;
    STD_TORCH_CHECK(false, op, ": theta must be ", zero ? ">= 0" : "> 0", ", got ", value,
                    " at position ", bad);
}

}  // namespace deepl0::torch_ops
