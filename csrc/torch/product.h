// x W' of an encoder, a panel of rows at a time.
#pragma once

#include <optional>
#include <type_traits>

#include "core/product.h"
#include "torch/steps.h"

namespace deepl0::torch_ops {

/// By torch's product; by one pass over W for few rows; by our own kernel where that pays.
template <class T>
class RowProduct {
  public:
    RowProduct(Matrix<const T> x, Matrix<const T> w) : x_(x), w_(w) {
        const bool plain = x.col_stride == 1 && w.col_stride == 1;
        few_ = plain && x.rows <= kFew;
        if constexpr (std::is_same_v<T, float>) {
            constexpr int64_t kLeast = 16;  // rows that repay the packing
            if (!plain || x.rows < kLeast || !product_pays()) return;
            packed_.emplace(product_packed_size(w.rows, w.cols));
            const int64_t groups = (w.rows + kProductGroup - 1) / kProductGroup;
            torch::stable::parallel_for(0, groups, 16, [&](int64_t begin, int64_t end) {
                product_pack(w.data, w.row_stride, w.rows, w.cols, begin, end, packed_->get());
            });
        }
    }

    /// out [end - begin, units], contiguous; out = x W' for rows [begin, end) of x.
    void operator()(int64_t begin, int64_t end, T* out) const {
        const T* rows = x_.data + begin * x_.row_stride;
        if constexpr (std::is_same_v<T, float>) {
            if (packed_) {
                product_rows(rows, x_.row_stride, end - begin, packed_->get(), w_.rows, w_.cols,
                             out, w_.rows);
                return;
            }
        }
        if (few_)
            few_product<T>(rows, x_.row_stride, end - begin, w_, nullptr, out);
        else
            mm<T>(row_major(out, end - begin, w_.rows), x_.range(begin, end), w_.transposed());
    }

  private:
    Matrix<const T> x_, w_;
    bool few_;
    std::optional<Buffer<T>> packed_;
};

}  // namespace deepl0::torch_ops
