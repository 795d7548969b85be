// x W' + bias of an encoder, a panel of rows at a time.
#pragma once

#include <optional>
#include <type_traits>

#include "core/product.h"
#include "torch/steps.h"

namespace deepl0::torch_ops {

/// x W' for any rows x: by our own kernel where that pays, by torch's product otherwise.
template <class T>
class Product {
  public:
    /// rows: of all x to come together.
    Product(Matrix<const T> w, int64_t rows) : w_(w) {
        if constexpr (std::is_same_v<T, float>) {
            constexpr int64_t kLeast = 16;  // rows that repay the packing
            if (w.col_stride != 1 || rows < kLeast || !product_pays()) return;
            packed_.emplace(product_packed_size(w.rows, w.cols));
            const int64_t groups = (w.rows + kProductGroup - 1) / kProductGroup;
            torch::stable::parallel_for(0, groups, 16, [&](int64_t begin, int64_t end) {
                product_kernels().pack(w.data, w.row_stride, w.rows, w.cols, begin, end,
                                       packed_->get());
            });
        }
    }

    bool own() const { return packed_.has_value(); }

    /// out [rows, units], contiguous; bias [units] or null.
    void operator()(Matrix<const T> x, T* out, const T* bias = nullptr) const {
        if constexpr (std::is_same_v<T, float>) {
            if (packed_ && x.col_stride == 1) {
                product_kernels().rows(x.data, x.row_stride, x.rows, packed_->get(), w_.rows,
                                       w_.cols, bias, out, w_.rows);
                return;
            }
        }
        const Matrix<T> to = row_major(out, x.rows, w_.rows);
        if (bias)
            addmm<T>(to, {bias, x.rows, w_.rows, 0, 1}, x, w_.transposed());
        else
            mm<T>(to, x, w_.transposed());
    }

  private:
    Matrix<const T> w_;
    std::optional<Buffer<T>> packed_;
};

/// The same of one x, by one pass over W for few rows.
template <class T>
class RowProduct {
  public:
    RowProduct(Matrix<const T> x, Matrix<const T> w, const T* bias = nullptr)
        : x_(x), w_(w), bias_(bias), plain_(x.col_stride == 1), product_(w, plain_ ? x.rows : 0) {}

    /// out [end - begin, units], contiguous; out = x W' + bias for rows [begin, end) of x.
    void operator()(int64_t begin, int64_t end, T* out) const {
        if (plain_ && w_.col_stride == 1 && x_.rows <= kFew && !product_.own())
            few_product<T>(x_.data + begin * x_.row_stride, x_.row_stride, end - begin, w_, bias_,
                           0, out);
        else
            product_(x_.range(begin, end), out, bias_);
    }

  private:
    Matrix<const T> x_, w_;
    const T* bias_;
    bool plain_;
    Product<T> product_;
};

}  // namespace deepl0::torch_ops
