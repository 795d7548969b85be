// Tensors as matrices in memory, and tensors for what comes out.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <initializer_list>

#include "torch/bindings.h"

namespace deepl0::torch_ops {

/// A matrix in memory that somebody else owns; strides in elements.
template <class T>
struct Matrix {
    T* data;
    int64_t rows, cols, row_stride, col_stride;

    Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
    /// Rows [begin, end).
    Matrix range(int64_t begin, int64_t end) const {
        return {data + begin * row_stride, end - begin, cols, row_stride, col_stride};
    }
};

template <class T>
Matrix<T> row_major(T* data, int64_t rows, int64_t cols) {
    return {data, rows, cols, cols, 1};
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

/// Whether the last two dimensions of t are a transposed view of a plain matrix.
inline bool by_columns(const Tensor& t) {
    const int64_t d = t.dim();
    return t.stride(d - 2) == 1 && t.stride(d - 1) == t.size(d - 2) && t.size(d - 1) > 1;
}

/// The same values; what is copied is by columns where t is, else contiguous.
inline Tensor cast_matrix(const Tensor& t, ScalarType type) {
    if (t.scalar_type() == type) return t;
    if (!by_columns(t)) return torch::stable::contiguous(cast(t, type));
    const Tensor plain = cast(torch::stable::transpose(t, -2, -1), type);
    return torch::stable::transpose(torch::stable::contiguous(plain), -2, -1);
}

/// An uninitialised gradient of the matrices t, of their shape: contiguous, or by columns as they
/// are. The fake kernels promise the same (gradient_of_matrix in deepl0_kernels/_matrices.py).
inline Tensor gradient_of_matrix(const Tensor& t, ScalarType type) {
    auto shape = shape_of(t);
    if (!by_columns(t)) return empty(t, shape, type);
    std::swap(shape[shape.size() - 2], shape[shape.size() - 1]);
    return torch::stable::transpose(empty(t, shape, type), -2, -1);
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

}  // namespace deepl0::torch_ops
