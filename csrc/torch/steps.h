// S of the steps of an encoder, in the layout that its kernels want.
#pragma once

#include <cstring>
#include <optional>
#include <type_traits>

#include "core/product.h"
#include "torch/kept.h"
#include "torch/panels.h"

namespace deepl0::torch_ops {

/// For batches this small W x and S z are products of a few rows with a matrix that is read once.
constexpr int64_t kFew = 4;

/// S [p, p] of every step as it lies in memory, and how many there are: 1 where they share it.
template <class T>
struct StepsInMemory {
    StepMatrices<T> s;
    int64_t matrices;

    bool by_columns() const { return s.transposed; }
};

/// Of a tensor [p, p] or [steps, p, p]; copies it only if it is neither plain nor transposed. s
/// keeps the memory alive.
template <class T>
StepsInMemory<T> steps_in_memory(Tensor& s, int64_t p) {
    const int64_t d = s.dim();
    const bool plain = s.stride(d - 1) == 1 && s.stride(d - 2) == p;
    const bool transposed = !plain && s.stride(d - 2) == 1 && s.stride(d - 1) == p;
    if (!plain && !transposed) s = torch::stable::contiguous(s);
    return {{static_cast<const T*>(s.const_data_ptr()), d == 3 ? s.stride(0) : 0, transposed},
            d == 3 ? s.size(0) : 1};
}

/// out[j, i] = s[c + i, j], i < n: the column panel [c, c + n) of S'.
template <class T>
void pack_panel(Matrix<const T> s, int64_t c, int64_t n, T* out) {
    if (s.col_stride == 1) {
        encode_kernels<T>().transpose(s.data + c * s.cols, n, s.cols, 0, n, out);
    } else {
        for (int64_t j = 0; j < s.cols; ++j)
            memcpy(out + j * n, s.data + j * s.rows + c, size_t(n) * sizeof(T));
    }
}

/// Columns of a panel of S'. Packed on the way it takes a quarter of L2. A kept one and the next,
/// which is fetched meanwhile, fit L2 together. On an Ice Lake with 1.25 MiB 64 columns were the
/// fastest at p = 512 to 2048 of kept panels, to 1024 of others, wider ones slower again.
template <class T>
int64_t panel_width(int64_t p, bool kept) {
    const int64_t column = std::max<int64_t>(1, p) * int64_t(sizeof(T)), l2 = l2_bytes();
    if (kept && 64 * column * 20 <= l2 * 9) return 64;
    return std::clamp<int64_t>(l2 / 4 / column / 16 * 16, 16, product_pays() ? 256 : 64);
}

/// S of every step in the layout that a kernel wants: as it is, S' in rows, or S' in column panels.
template <class T>
class Steps {
  public:
    /// rows: S' in rows. panels: where it is kept, in column panels.
    Steps(const StepsInMemory<T>& given, int64_t p, bool rows, bool panels, Kept* kept)
        : given_(given.s), matrices_(given.s), p_(p) {
        if constexpr (std::is_same_v<T, float>) {
            if (kept && panels) {
                const int64_t width = panel_width<T>(p, true);
                const auto fill = [&](float* out) {
                    for (int64_t k = 0; k < given.matrices; ++k) {
                        const Matrix<const T> s = (*this)[k];
                        torch::stable::parallel_for(
                            0, (p + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
                                for (int64_t c = begin * width; c < std::min(p, end * width);
                                     c += width)
                                    pack_panel(s, c, std::min(width, p - c), out + (k * p + c) * p);
                            });
                    }
                };
                panels_ = {kept->panels.get<float>(given.matrices * p * p, fill),
                           given.matrices > 1 ? p * p : 0, true};
            }
        }
        if (!rows || given.s.transposed) return;
        const int64_t size = given.matrices * p * p;
        const auto fill = [&](T* out) {
            for (int64_t k = 0; k < given.matrices; ++k)
                transpose_matrix<T>(given.s.data + k * given.s.step_stride, p, p, out + k * p * p);
        };
        const T* data;
        if (kept && std::is_same_v<T, float>) {
            data = kept->transposed.get<T>(size, fill);
        } else {
            copy_.emplace(size);
            fill(copy_->get());
            data = copy_->get();
        }
        matrices_ = {data, given.matrices > 1 ? p * p : 0, true};
    }

    StepMatrices<T> matrices() const { return matrices_; }
    /// S' in panels, panel c of step k at data + k * step_stride + c * p; data null: not kept.
    StepMatrices<T> panels() const { return panels_; }
    /// S of step k.
    Matrix<const T> operator[](int64_t k) const {
        const Matrix<const T> m = row_major(given_.data + k * given_.step_stride, p_, p_);
        return given_.transposed ? m.transposed() : m;
    }

  private:
    StepMatrices<T> given_, matrices_, panels_{};
    int64_t p_;
    std::optional<Buffer<T>> copy_;
};

}  // namespace deepl0::torch_ops
