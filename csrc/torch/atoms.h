// A dictionary D as its atoms, the rows of D'.
#pragma once

#include <optional>

#include "core/decode.h"
#include "torch/lists.h"

namespace deepl0::torch_ops {

/// D' [p, n] of D [n, p]: D itself where it is a transposed view, else a copy, made when it is
/// asked for.
template <class T>
class Atoms {
  public:
    explicit Atoms(const Tensor& d)
        : d_(d), n_(d.size(0)), p_(d.size(1)), transposed_(by_columns(d)) {}

    bool transposed() const { return transposed_; }
    int64_t n() const { return n_; }
    /// D' where transposed, else D.
    const T* data() {
        if (!transposed_) d_ = torch::stable::contiguous(d_);
        return static_cast<const T*>(d_.const_data_ptr());
    }
    const T* rows() {
        if (transposed_) return data();
        if (!copy_) {
            copy_.emplace(n_ * p_);
            transpose_matrix<T>(data(), n_, p_, copy_->get());
        }
        return copy_->get();
    }

  private:
    Tensor d_;
    int64_t n_, p_;
    bool transposed_;
    std::optional<Buffer<T>> copy_;
};

}  // namespace deepl0::torch_ops
