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
    rows = rows_of(t);
    if (const auto found = rows == 0 || cols == 0 ? std::optional<int64_t>(cols) : row_stride(t)) {
        stride = *found;
    } else {
        tensor = torch::stable::contiguous(t);
        stride = cols;
    }
    data = tensor.const_data_ptr();
}

Threshold threshold_kind(std::string_view name) {
    constexpr std::string_view prefix = "positive_";
    const bool positive = name.substr(0, prefix.size()) == prefix;
    const std::string_view kind = positive ? name.substr(prefix.size()) : name;
    if (kind == "hard") return {ThresholdKind::hard, positive};
    if (kind == "soft") return {ThresholdKind::soft, positive};
    if (kind == "helu") return {ThresholdKind::helu, positive};
    if (kind == "ste") return {ThresholdKind::ste, positive};
    if (kind == "ste_theta") return {ThresholdKind::ste_theta, positive};
    STD_TORCH_CHECK(false, "kind must be hard, soft, helu, ste or ste_theta, or one of them after ",
                    prefix, ", got ", name);
}

void check_sigma(const char* op, double sigma) {
    STD_TORCH_CHECK(sigma >= 0 && sigma <= 1, op, ": sigma must be in [0, 1], got ", sigma);
}

void check_theta(const char* op, Threshold h, const Tensor& theta) {
    const int64_t bad =
        first_bad_theta(dtype_of(theta, "theta"), h, theta.const_data_ptr(), theta.numel());
    if (bad < 0) return;
    const double value = theta.scalar_type() == ScalarType::Double
                             ? static_cast<const double*>(theta.const_data_ptr())[bad]
                             : static_cast<const float*>(theta.const_data_ptr())[bad];
    STD_TORCH_CHECK(false, op, ": theta must be ", h.may_be_zero() ? ">= 0" : "> 0", ", got ",
                    value, " at position ", bad);
}

void check_encoder(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s, int64_t stages,
                   const char* op) {
    STD_TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1), op,
                    ": x [B, n] and W [p, n] do not fit");
    dtype_of(x, "x");
    STD_TORCH_CHECK(stages >= 1, op, ": num_stages must be at least 1, got ", stages);
    STD_TORCH_CHECK(s || stages == 1, op, ": S may be None only when num_stages == 1");
    STD_TORCH_CHECK(w.scalar_type() == x.scalar_type(), op, ": W has not the dtype of x");
    if (!s) return;
    const int64_t p = w.size(0), d = s->dim();
    STD_TORCH_CHECK((d == 2 || (d == 3 && s->size(0) == stages - 1)) && s->size(d - 1) == p &&
                        s->size(d - 2) == p,
                    op, ": S must be [p, p] or [num_stages - 1, p, p]");
    STD_TORCH_CHECK(s->scalar_type() == x.scalar_type(), op, ": S has not the dtype of x");
}

void check_indices(const Tensor& indices, int64_t p, const char* op) {
    STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long, op, ": indices must be int64");
    const Tensor flat = torch::stable::contiguous(indices);
    const int64_t* at = static_cast<const int64_t*>(flat.const_data_ptr());
    uint64_t worst = 0;
    for (int64_t e = 0, n = flat.numel(); e < n; ++e) worst = std::max(worst, uint64_t(at[e]));
    // A negative index is a huge unsigned one.
    STD_TORCH_CHECK(flat.numel() == 0 || worst < uint64_t(p), op, ": indices must be in [0, ", p,
                    "), got ", int64_t(worst));
}

}  // namespace deepl0::torch_ops
