// S of the steps of an encoder, in the layout that its kernels want.
#pragma once

#include <optional>

#include "torch/panels.h"

namespace deepl0::torch_ops {

/// For batches this small W x and S z are products of a few rows with a matrix that is read once.
constexpr int64_t kFew = 4;

/// S of every step, transposed where the plan needs S' and it is not there.
template <class T>
class Steps {
  public:
    Steps(Tensor& s, int64_t p, bool need_transposed) {
        const int64_t d = s.dim();
        const bool plain = s.stride(d - 1) == 1 && s.stride(d - 2) == p;
        const bool transposed = !plain && s.stride(d - 2) == 1 && s.stride(d - 1) == p;
        if (!plain && !transposed) s = torch::stable::contiguous(s);
        const T* data = static_cast<const T*>(s.const_data_ptr());
        matrices_ = {data, d == 3 ? s.stride(0) : 0, transposed};
        p_ = p;
        if (!need_transposed || transposed) return;
        const int64_t steps = d == 3 ? s.size(0) : 1;
        copy_.emplace(steps * p * p);
        for (int64_t k = 0; k < steps; ++k)
            transpose_matrix<T>(matrices_.data + k * matrices_.step_stride, p, p,
                                copy_->get() + k * p * p);
        matrices_ = {copy_->get(), d == 3 ? p * p : 0, true};
    }

    StepMatrices<T> matrices() const { return matrices_; }
    /// S of step k.
    Matrix<const T> operator[](int64_t k) const {
        const Matrix<const T> m = row_major(matrices_.data + k * matrices_.step_stride, p_, p_);
        return matrices_.transposed ? m.transposed() : m;
    }

  private:
    StepMatrices<T> matrices_;
    int64_t p_;
    std::optional<Buffer<T>> copy_;
};

}  // namespace deepl0::torch_ops
