// A dictionary D as its atoms, the rows of D'.
#pragma once

#include <optional>
#include <type_traits>

#include "core/decode.h"
#include "torch/kept.h"
#include "torch/lists.h"

namespace deepl0::torch_ops {

/// D' [p, n] of D [n, p]: D itself where it is a transposed view, else a copy, made when it is
/// asked for.
template <class T>
class Atoms {
  public:
    explicit Atoms(const Tensor& d, Kept* kept = nullptr)
        : d_(d), n_(d.size(0)), p_(d.size(1)), transposed_(by_columns(d)), kept_(kept) {}

    bool transposed() const { return transposed_; }
    int64_t n() const { return n_; }
    /// D' where transposed, else D.
    const T* data() {
        if (!transposed_) d_ = torch::stable::contiguous(d_);
        return static_cast<const T*>(d_.const_data_ptr());
    }
    const T* rows() {
        if (transposed_) return data();
        const auto fill = [&](T* out) { transpose_matrix<T>(data(), n_, p_, out); };
        if (kept_ && std::is_same_v<T, float>) return kept_->atoms.get<T>(n_ * p_, fill);
        if (!copy_) {
            copy_.emplace(n_ * p_);
            fill(copy_->get());
        }
        return copy_->get();
    }

  private:
    Tensor d_;
    int64_t n_, p_;
    bool transposed_;
    Kept* kept_;
    std::optional<Buffer<T>> copy_;
};

}  // namespace deepl0::torch_ops
