// What the bindings of the fused operators share: element types, layouts, buffers, panels of rows.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>

#include "core/encode.h"
#include "torch/bindings.h"
#include "torch/gemm.h"

namespace deepl0::torch_ops {

inline Tensor cast(const Tensor& t, ScalarType type) {
    return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

/// An uninitialised contiguous CPU tensor, by the C shim: new_empty looks its operator up by name
/// on every call, 0.4 us that matter for a batch of one.
inline Tensor fresh(std::initializer_list<int64_t> sizes, ScalarType type) {
    int64_t strides[4], stride = 1;
    STD_TORCH_CHECK(sizes.size() <= 4, "fresh: at most 4 dimensions");
    for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(1, sizes.begin()[d]))
        strides[d] = stride;
    const int32_t dtype = type == ScalarType::Double  ? aoti_torch_dtype_float64()
                          : type == ScalarType::Float ? aoti_torch_dtype_float32()
                                                      : aoti_torch_dtype_int64();
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides,
                                                    dtype, aoti_torch_device_type_cpu(), 0,
                                                    &handle));
    return Tensor(handle);
}

/// The last two dimensions of t as a matrix with one unit stride, copying t only if it has none.
/// t keeps the memory alive.
template <class T>
Matrix<const T> matrix(Tensor& t) {
    const auto layout = [&] {
        const int64_t d = t.dim();
        return Matrix<const T>{nullptr, t.size(d - 2), t.size(d - 1), t.stride(d - 2),
                               t.stride(d - 1)};
    };
    Matrix<const T> m = layout();
    const bool by_rows = m.col_stride == 1 && m.row_stride >= m.cols;
    const bool by_cols = m.row_stride == 1 && m.col_stride >= m.rows;
    if (!by_rows && !by_cols) {
        t = torch::stable::contiguous(t);
        m = layout();
    }
    m.data = static_cast<const T*>(t.const_data_ptr());
    return m;
}

/// The same with unit column stride.
template <class T>
Matrix<const T> row_major_matrix(Tensor& t) {
    if (matrix<T>(t).col_stride != 1 || t.stride(t.dim() - 2) < t.size(t.dim() - 1))
        t = torch::stable::contiguous(t);
    return matrix<T>(t);
}

/// Throws unless every index is in [0, p).
void check_indices(const Tensor& indices, int64_t p, const char* op);

/// Throws unless x [B, n], W [p, n] and S ([p, p], [stages - 1, p, p], or none for one stage) fit.
void check_encoder(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s, int64_t stages,
                   const char* op);

/// Uninitialised memory of one thread or one call, aligned to cache lines.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t n) {
        size_t bytes = size_t(n > 0 ? n : 1) * sizeof(T), alignment = 64;
#ifdef MADV_HUGEPAGE
        if (bytes >= kHuge) alignment = kHuge;
#endif
        bytes = (bytes + alignment - 1) / alignment * alignment;
        data_.reset(static_cast<T*>(std::aligned_alloc(alignment, bytes)));
        if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        if (bytes >= kHuge) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
    }
    T* get() const { return data_.get(); }

  private:
    static constexpr size_t kHuge = size_t(2) << 20;
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> data_;
};

/// The blocks of one task: the first ones from a store on the stack, which for a batch of one is
/// faster than the allocator. Uninitialised, aligned to cache lines.
class Blocks {
  public:
    template <class T>
    T* take(int64_t n) {
        const size_t bytes = (size_t(n) * sizeof(T) + 63) / 64 * 64;
        if (bytes > sizeof store_ - used_) {
            large_.emplace_back(int64_t(bytes));
            return reinterpret_cast<T*>(large_.back().get());
        }
        void* block = store_ + used_;
        used_ += bytes;
        return static_cast<T*>(block);
    }

  private:
    alignas(64) char store_[size_t(48) << 10];
    size_t used_ = 0;
    std::vector<Buffer<char>> large_;
};

/// out = base + x w' for few rows of x (and of base, which may be null), w row-major, out [rows,
/// units]; by several threads where w is worth it. An entry does not depend on their number.
template <class T>
void few_product(const T* x, int64_t ldx, int64_t rows, Matrix<const T> w, const T* base, T* out) {
    constexpr int64_t kTask = int64_t(1) << 20;  // bytes
    const int64_t grain = std::max<int64_t>(16, kTask / (int64_t(sizeof(T)) * (w.cols + 1)));
    torch::stable::parallel_for(0, w.rows, grain, [&](int64_t begin, int64_t end) {
        encode_kernels<T>().product(x, ldx, rows, w.data + begin * w.row_stride, w.row_stride,
                                    end - begin, w.cols, base ? base + begin : nullptr, out + begin,
                                    w.rows);
    });
}

/// out = s' of a plain s [rows, cols].
template <class T>
void transpose_matrix(const T* s, int64_t rows, int64_t cols, T* out) {
    torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
        encode_kernels<T>().transpose(s, rows, cols, begin, end, out);
    });
}

/// Size of the L2 cache of a core, 1 MiB where the system does not tell.
int64_t l2_bytes();

/// Rows of a panel whose [rows, columns] buffer is worked on as a whole.
inline int64_t panel_rows(int64_t columns, size_t element_size, int64_t most) {
    constexpr int64_t kPanelBytes = int64_t(8) << 20;
    const int64_t fit = kPanelBytes / std::max<int64_t>(1, columns * int64_t(element_size));
    return std::clamp<int64_t>(fit, 16, most);
}

}  // namespace deepl0::torch_ops
