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
    /// rows: of all x to come together. Whether W is kept packed changes no bit.
    Product(Matrix<const T> w, int64_t rows, Kept* kept = nullptr) : w_(w) {
        if constexpr (std::is_same_v<T, float>) {
            if (w.col_stride != 1 || !product_pays(rows, w.rows * w.cols)) return;
            const int64_t size = product_packed_size(w.rows, w.cols);
            const auto pack = [&](float* to) {
                const int64_t groups = (w.rows + kProductGroup - 1) / kProductGroup;
                torch::stable::parallel_for(0, groups, 16, [&](int64_t begin, int64_t end) {
                    product_kernels().pack(w.data, w.row_stride, w.rows, w.cols, begin, end, to);
                });
            };
            if (kept) {
                packed_ = kept->product.get<float>(size, pack);
            } else {
                own_.emplace(size);
                pack(own_->get());
                packed_ = own_->get();
            }
        }
    }

    bool own() const { return packed_ != nullptr; }

    /// out [rows, units], contiguous; bias [units] or null.
    void operator()(Matrix<const T> x, T* out, const T* bias = nullptr) const {
        if constexpr (std::is_same_v<T, float>) {
            if (packed_ && x.col_stride == 1) {
                product_kernels().rows(x.data, x.row_stride, x.rows, packed_, w_.rows, w_.cols,
                                       bias, out, w_.rows);
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
    const T* packed_ = nullptr;
    std::optional<Buffer<T>> own_;
};

/// x W' + bias, a panel of rows at a time; by one pass over W for few rows.
template <class T>
class StageProduct {
  public:
    /// batch: rows of all panels together; plain: whether they come with unit column stride.
    StageProduct(Matrix<const T> w, const T* bias, int64_t batch, bool plain = true,
                 Kept* kept = nullptr)
        : w_(w), bias_(bias), product_(w, plain ? batch : 0, kept) {
        few_ = plain && w.col_stride == 1 && batch <= kFew && !product_.own();
    }

    /// out [rows, units], contiguous.
    void operator()(Matrix<const T> x, T* out) const {
        if (few_)
            few_product<T>(x.data, x.row_stride, x.rows, w_, bias_, 0, out);
        else
            product_(x, out, bias_);
    }

  private:
    Matrix<const T> w_;
    const T* bias_;
    Product<T> product_;
    bool few_;
};

/// The same of the rows of one x.
template <class T>
class RowProduct {
  public:
    RowProduct(Matrix<const T> x, Matrix<const T> w, const T* bias, Kept* kept = nullptr)
        : x_(x), product_(w, bias, x.rows, x.col_stride == 1, kept) {}

    /// Of rows [begin, end).
    void operator()(int64_t begin, int64_t end, T* out) const {
        product_(x_.range(begin, end), out);
    }

  private:
    Matrix<const T> x_;
    StageProduct<T> product_;
};

}  // namespace deepl0::torch_ops
