// The thresholds of the stages of an l0 encoder.
#pragma once

#include <algorithm>

#include "core/thresholds.h"
#include "torch/bindings.h"
#include "torch/buffer.h"

namespace deepl0::torch_ops {

/// theta [], [p] or [stages, p], checked, and what goes with it.
class StageThresholds {
  public:
    /// code: the dtype of x, which codes are rounded to.
    StageThresholds(const char* op, const Tensor& given, int64_t stages, int64_t p, DType code,
                    double sigma, Threshold kind)
        : theta_(torch::stable::contiguous(given)),
          h_(kind),
          code_(code),
          dtype_(code_ == DType::f64 ? DType::f64 : DType::f32),
          sigma_(sigma) {
        const ScalarType type = code_ == DType::f64 ? ScalarType::Double : ScalarType::Float;
        const int64_t d = theta_.dim();
        check_sigma(op, sigma);
        STD_TORCH_CHECK(theta_.scalar_type() == type &&
                            (d == 0 || (d == 1 && theta_.size(0) == p) ||
                             (d == 2 && theta_.size(0) == stages && theta_.size(1) == p)),
                        op, ": theta must be [], [p] or [K, p], in the accumulation dtype");
        check_theta(op, h_, theta_);
        per_entry_ = d > 0;
        stage_bytes_ = d == 2 ? p * int64_t(theta_.element_size()) : 0;
        data_ = static_cast<const char*>(theta_.const_data_ptr());
    }

    bool per_entry() const { return per_entry_; }
    bool per_stage() const { return stage_bytes_ > 0; }
    DType dtype() const { return dtype_; }

    /// out = h(u) of stage k for contiguous rows, rounded to the dtype of codes.
    template <class T>
    void apply(int64_t k, const T* u, int64_t rows, int64_t p, T* out) const {
        threshold_kernels().threshold(dtype_, h_, u, p, data_ + k * stage_bytes_, per_entry_,
                                      sigma_, out, p, p, 0, rows);
        if constexpr (sizeof(T) == 4) threshold_kernels().round(code_, out, rows * p);
    }

    /// out is not 0 wherever the derivative in u or theta may be, given that no theta is 0.
    template <class T>
    void support(int64_t k, const T* u, int64_t rows, int64_t p, T* out) const {
        Threshold h = h_;
        if (!h.may_be_zero()) h.kind = ThresholdKind::helu;
        threshold_kernels().threshold(dtype_, h, u, p, data_ + k * stage_bytes_, per_entry_, sigma_,
                                      out, p, p, 0, rows);
    }
    /// Whether the support of the derivative is that of the code itself: what is rounded to 0 has a
    /// derivative.
    bool same_support() const {
        if (code_ != dtype_) return false;
        return h_.may_be_zero() || h_.kind == ThresholdKind::helu || sigma_ == 0;
    }
    /// Whether some theta is 0: then an entry that is 0 may carry a gradient.
    bool has_zero() const {
        const int64_t n = theta_.numel();
        if (dtype_ == DType::f64)
            return std::count(reinterpret_cast<const double*>(data_),
                              reinterpret_cast<const double*>(data_) + n, 0.0) > 0;
        return std::count(reinterpret_cast<const float*>(data_),
                          reinterpret_cast<const float*>(data_) + n, 0.0f) > 0;
    }

    /// grad_u = c grad for contiguous rows in blocks of kThresholdBlockRows, block_begin to
    /// block_end, and the partial sums of e grad to partials; see threshold_backward.
    template <class T>
    void backward(int64_t k, const T* grad, const T* u, T* grad_u, int64_t rows, int64_t p,
                  int64_t block_begin, int64_t block_end, double* partials) const {
        threshold_kernels().backward(dtype_, h_, grad, p, u, p, data_ + k * stage_bytes_,
                                     per_entry_, sigma_, grad_u, rows, p, block_begin, block_end,
                                     partials);
    }

  private:
    Tensor theta_;
    Threshold h_;
    DType code_, dtype_;
    double sigma_;
    bool per_entry_ = false;
    int64_t stage_bytes_ = 0;
    const char* data_;
};

/// Partial sums of the gradient of theta: one row of `width` per stage and block of rows.
class ThetaPartials {
  public:
    /// Where they are not wanted there are none, and at() is null.
    ThetaPartials(bool wanted, int64_t stages, int64_t batch, int64_t p, bool per_entry)
        : wanted_(wanted),
          batch_(batch),
          p_(p),
          per_entry_(per_entry),
          width_(per_entry ? p : 1),
          stage_(threshold_blocks(batch) * width_),
          data_(wanted ? stages * stage_ : 0) {}

    bool wanted() const { return wanted_; }

    double* at(int64_t stage, int64_t row) const {
        if (!wanted_) return nullptr;
        return data_.get() + stage * stage_ + row / kThresholdBlockRows * width_;
    }

    /// out[i] = the sum over the blocks, and over the stages [k0, k1).
    template <class T>
    void reduce(DType dtype, int64_t k0, int64_t k1, T* out) const {
        const Buffer<T> one(width_);
        std::fill_n(out, width_, T(0));
        for (int64_t k = k0; k < k1; ++k) {
            reduce_grad_theta(dtype, at(k, 0), batch_, p_, per_entry_, one.get(), 0, width_);
            for (int64_t i = 0; i < width_; ++i) out[i] += one.get()[i];
        }
    }

    /// The gradient of theta, in its shape.
    template <class T>
    void reduce_into(const StageThresholds& h, int64_t stages, T* out) const {
        if (!h.per_stage()) return reduce(h.dtype(), 0, stages, out);
        for (int64_t k = 0; k < stages; ++k) reduce(h.dtype(), k, k + 1, out + k * p_);
    }

  private:
    bool wanted_;
    int64_t batch_, p_;
    bool per_entry_;
    int64_t width_, stage_;
    Buffer<double> data_;
};

}  // namespace deepl0::torch_ops
