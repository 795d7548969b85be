// What the bindings of the operators share: checks, views of tensors as rows, allocation.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/dtype.h"
#include "core/thresholds.h"
#include "torch/buffer.h"
#include "torch/shim.h"

namespace deepl0::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(ScalarType type, const char* name) {
    switch (type) {
        case ScalarType::Float:
            return DType::f32;
        case ScalarType::Double:
            return DType::f64;
        case ScalarType::Half:
            return DType::f16;
        case ScalarType::BFloat16:
            return DType::bf16;
        default:
            STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16");
    }
}
inline DType dtype_of(const Tensor& t, const char* name) { return dtype_of(t.scalar_type(), name); }

/// The size of the last dimension, of which a tensor of rows has one.
inline int64_t last_size(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.dim() > 0, name, " must have at least one dimension");
    return t.size(t.dim() - 1);
}

/// The number of rows: of last dimensions.
inline int64_t rows_of(const Tensor& t) {
    int64_t rows = 1;
    for (int64_t i = 0; i + 1 < t.dim(); ++i) rows *= t.size(i);
    return rows;
}

inline ScalarType accumulation_type(const Tensor& t) {
    return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
    const auto sizes = t.sizes();
    return {sizes.begin(), sizes.end()};
}

inline std::vector<int64_t> with_last(const Tensor& t, int64_t last) {
    auto shape = shape_of(t);
    shape.back() = last;
    return shape;
}

/// A contiguous tensor of the device of `like`.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
    Tensor t = torch::stable::new_empty(like, shape, type);
    if (t.is_cpu()) prefer_huge_pages(t.mutable_data_ptr(), size_t(t.numel()) * t.element_size());
    return t;
}

/// The same; `wanted` false: of shape [0].
inline Tensor empty_if(bool wanted, const Tensor& like, const std::vector<int64_t>& shape) {
    return empty(like, wanted ? shape : std::vector<int64_t>{0}, like.scalar_type());
}

inline Tensor cast(const Tensor& t, ScalarType type) {
    return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

// A tensor [..., cols] seen as rows with one stride. Copies only when its strides do not allow
// that.
struct Rows {
    Tensor tensor;  // keeps the memory alive
    int64_t rows, cols, stride;
    const void* data;

    Rows(const Tensor& t, const char* name);
};

/// What an operator takes as `str`.
struct Name {
    std::string text;
};

// Kind of threshold by name; sigma, and theta's values for a kind, checked.
Threshold threshold_kind(std::string_view name);
void check_sigma(const char* op, double sigma);
void check_theta(const char* op, Threshold h, const Tensor& theta);

/// Throws unless every index is in [0, p).
void check_indices(const Tensor& indices, int64_t p, const char* op);

/// Throws unless x [B, n], W [p, n] and S ([p, p], [stages - 1, p, p], or none for one stage) fit.
void check_encoder(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s, int64_t stages,
                   const char* op);

/// The bias of u = x W' + b, or none: checked, in the accumulation dtype.
class Bias {
  public:
    Bias(const char* op, const std::optional<Tensor>& given, const Tensor& x, int64_t p) {
        if (!given) return;
        STD_TORCH_CHECK(given->dim() == 1 && given->size(0) == p, op, ": bias must be [p]");
        STD_TORCH_CHECK(given->scalar_type() == x.scalar_type(), op,
                        ": bias has not the dtype of x");
        tensor_ = torch::stable::contiguous(cast(*given, accumulation_type(x)));
    }

    template <class T>
    const T* data() const {
        return tensor_ ? static_cast<const T*>(tensor_->const_data_ptr()) : nullptr;
    }

  private:
    std::optional<Tensor> tensor_;
};

/// Throws unless 0 <= m <= p.
inline void check_m(int64_t m, int64_t p) {
    STD_TORCH_CHECK(0 <= m && m <= p, "m must be >= 0 and <= p = ", p, ", got ", m);
}

/// Bytes of a row of a mask of p bits.
inline int64_t mask_bytes(int64_t p) { return (p + 7) / 8; }

/// Whether a backward is asked for the gradient of its operand of that number. What is not asked
/// for is returned as an empty tensor of shape [0], and nothing is computed or read for it alone.
inline bool wants(int64_t mask, int operand) { return mask >> operand & 1; }

// Rows per task that make a task worth a thread: about 16k elements.
inline int64_t grain_rows(int64_t cols) {
    return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, cols));
}

// The operators, in the order of deepl0_kernels/ops. Their schemas are defined there.
Tensor threshold(Tensor u, Tensor theta, double sigma, Threshold kind);
std::tuple<Tensor, Tensor> threshold_backward(Tensor grad, Tensor u, Tensor theta, double sigma,
                                              Threshold kind, int64_t mask);
std::tuple<Tensor, Tensor> top_m(Tensor u, int64_t m, bool positive);
Tensor unpool(Tensor values, Tensor indices, int64_t size);
std::tuple<Tensor, Tensor> keep_top_m(Tensor u, int64_t m, bool positive);
Tensor apply_mask(Tensor u, Tensor mask);
std::tuple<Tensor, Tensor, Tensor> batch_top_m(Tensor u, int64_t m, bool positive);
std::tuple<Tensor, Tensor> threshold_stage(Tensor x, Tensor W, Tensor z, Tensor S,
                                           std::optional<Tensor> bias, Tensor theta, double sigma,
                                           Threshold kind, bool save);
std::tuple<Tensor, Tensor> top_m_stage(Tensor x, Tensor W, Tensor z, Tensor S,
                                       std::optional<Tensor> bias, int64_t m, bool positive);
std::tuple<Tensor, Tensor> encode_l0(Tensor x, Tensor W, std::optional<Tensor> S,
                                     std::optional<Tensor> bias, Tensor theta, int64_t num_stages,
                                     double sigma, Threshold kind, bool save);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> encode_l0_backward(Tensor grad_z, Tensor saved,
                                                                      Tensor x, Tensor W,
                                                                      std::optional<Tensor> S,
                                                                      Tensor theta, double sigma,
                                                                      Threshold kind, int64_t mask);
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m(Tensor x, Tensor W, std::optional<Tensor> S,
                                                        std::optional<Tensor> bias, int64_t m,
                                                        int64_t num_stages, bool positive,
                                                        bool save);
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_backward(
    Tensor grad_values, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
    Tensor saved_indices, Tensor x, Tensor W, std::optional<Tensor> S, int64_t mask);
std::tuple<Tensor, Tensor> encode_l0_factored(Tensor x, Tensor W, Tensor D,
                                              std::optional<Tensor> bias,
                                              std::optional<Tensor> step, Tensor theta,
                                              int64_t num_stages, double sigma, Threshold kind,
                                              bool save);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> encode_l0_factored_backward(
    Tensor grad_z, Tensor saved, Tensor x, Tensor W, Tensor D, std::optional<Tensor> step,
    Tensor theta, double sigma, Threshold kind, int64_t mask);
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_factored(Tensor x, Tensor W, Tensor D,
                                                                 std::optional<Tensor> bias,
                                                                 std::optional<Tensor> step,
                                                                 std::vector<int64_t> m,
                                                                 bool positive, bool save);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> encode_top_m_factored_backward(
    Tensor grad_values, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
    Tensor saved_indices, Tensor x, Tensor W, Tensor D, std::optional<Tensor> step,
    std::vector<int64_t> m, int64_t mask);
std::tuple<Tensor, Tensor> shard_top_m(Tensor x, Tensor W, std::optional<Tensor> bias,
                                       Tensor z_values, Tensor z_indices, int64_t m, bool positive);
Tensor decode(Tensor values, Tensor indices, Tensor D);
std::tuple<Tensor, Tensor> decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor D,
                                           int64_t mask);
std::tuple<Tensor, Tensor, Tensor, Tensor> omp(Tensor x, Tensor D, int64_t m, double tol,
                                               bool positive);
Tensor least_squares(Tensor gram, Tensor right, Tensor support, double floor);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> iht_top_m(
    Tensor x, Tensor D, std::optional<Tensor> values, std::optional<Tensor> indices, int64_t m,
    double step, double tol, int64_t max_iter, bool history, bool positive);
std::tuple<Tensor, Tensor, Tensor, Tensor> iht_l0(Tensor x, Tensor D, std::optional<Tensor> start,
                                                  double lam, double step, double tol,
                                                  int64_t max_iter, bool history, bool positive);
std::tuple<Tensor, Tensor, Tensor, Tensor> fista(Tensor x, Tensor D, std::optional<Tensor> start,
                                                 double lam, double step, double tol,
                                                 int64_t max_iter, bool history, bool positive);
void sparse_adam_(Tensor param, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, double lr,
                  double beta1, double beta2, double eps, int64_t t, bool unit_norm);

}  // namespace deepl0::torch_ops

/// An operator's `str`, read without torch's own conversion (2.13), which leaks 48 bytes a
/// call, and so keeps whole tensors' worth of the heap apart.
template <>
struct torch::stable::detail::ToImpl<deepl0::torch_ops::Name> {
    static deepl0::torch_ops::Name call(StableIValue value, uint64_t, bool) {
        const auto handle = to<StringHandle>(value);
        const auto free = [](StringHandle name) { torch_delete_string(name); };
        const std::unique_ptr<StringOpaque, decltype(free)> owned(handle, free);
        const char* data = nullptr;
        size_t length = 0;
        TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
        TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
        return {{data, length}};
    }
};

/// An operator's `str kind`.
template <>
struct torch::stable::detail::ToImpl<deepl0::Threshold> {
    static deepl0::Threshold call(StableIValue value, uint64_t, bool) {
        return deepl0::torch_ops::threshold_kind(to<deepl0::torch_ops::Name>(value).text);
    }
};
