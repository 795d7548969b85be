// torch's matrix product on raw pointers, through the C shim of the stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "torch/matrix.h"
#include "torch/shim.h"

namespace deepl0::torch_ops {

namespace detail {
template <class T>
torch::stable::Tensor wrap(Matrix<T> m) {
    using Element = std::remove_const_t<T>;
    constexpr auto dtype = std::is_same_v<Element, double> ? torch::headeronly::ScalarType::Double
                                                           : torch::headeronly::ScalarType::Float;
    const int64_t sizes[] = {m.rows, m.cols}, strides[] = {m.row_stride, m.col_stride};
    static const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    return torch::stable::from_blob(const_cast<Element*>(m.data), {sizes, 2}, {strides, 2}, cpu,
                                    dtype);
}
}  // namespace detail

/// out = a b. Multithreaded on its own, single-threaded inside a parallel region; 1 us per call on
/// top of the BLAS. Below autograd and autocast, whatever thread calls it.
template <class T>
void mm(Matrix<T> out, Matrix<const T> a, Matrix<const T> b) {
    const auto o = detail::wrap(out), x = detail::wrap(a), y = detail::wrap(b);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(o.get(), x.get(), y.get()));
}

/// out = base + a b; base may be out.
template <class T>
void addmm(Matrix<T> out, Matrix<const T> base, Matrix<const T> a, Matrix<const T> b) {
    const auto o = detail::wrap(out), c = detail::wrap(base);
    const auto x = detail::wrap(a), y = detail::wrap(b);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(o.get(), c.get(), x.get(), y.get(), 1.0, 1.0));
}

/// out += a b.
template <class T>
void add_mm(Matrix<T> out, Matrix<const T> a, Matrix<const T> b) {
    addmm<T>(out, {out.data, out.rows, out.cols, out.row_stride, out.col_stride}, a, b);
}

}  // namespace deepl0::torch_ops
