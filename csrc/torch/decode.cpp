#include <optional>
#include <tuple>

#include "torch/atoms.h"

namespace deepl0::torch_ops {
namespace {

template <class T>
Tensor decode_rows(Tensor values, Tensor indices, Tensor d) {
    values = torch::stable::contiguous(values);
    indices = torch::stable::contiguous(indices);
    const int64_t batch = values.size(0), m = values.size(1), n = d.size(0), p = d.size(1);
    Tensor out = fresh({batch, n}, values.scalar_type());
    Atoms<T> atoms(d);
    const T* v = static_cast<const T*>(values.const_data_ptr());
    const int64_t* at = static_cast<const int64_t*>(indices.const_data_ptr());
    T* x = static_cast<T*>(out.mutable_data_ptr());
    const auto& kernels = decode_kernels<T>();
    if (!atoms.transposed() && few_entries(batch, m, p)) {
        kernels.columns(v, at, batch, m, atoms.data(), n, p, x);
        return out;
    }
    const T* dt = atoms.rows();
    torch::stable::parallel_for(0, batch, 32, [&](int64_t b0, int64_t b1) {
        kernels.rows(v + b0 * m, at + b0 * m, b1 - b0, m, dt, n, x + b0 * n);
    });
    return out;
}

/// Few rows: straight on D and its gradient, unit by unit of the n outputs, each listing all rows.
/// gv or gd may be null.
template <class T>
void few_gradients(const T* g, const T* v, const int64_t* at, int64_t batch, int64_t m, const T* d,
                   int64_t n, int64_t p, T* gv, T* gd) {
    const Buffer<int32_t> narrow(batch * m), start(n + 1), row(n * batch);
    const Buffer<T> coefficient(n * batch);
    std::copy_n(at, batch * m, narrow.get());
    for (int64_t i = 0; i <= n; ++i) start.get()[i] = int32_t(i * batch);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t r = 0; r < batch; ++r) {
            row.get()[i * batch + r] = int32_t(r);
            coefficient.get()[i * batch + r] = g[r * n + i];
        }
    }
    const UnitLists<T> lists{start.get(), row.get(), coefficient.get(), nullptr};
    const SparseRows<T> z{narrow.get(), v, nullptr, m};
    if (gv) {
        std::fill_n(gv, batch * m, T(0));
        unit_kernels<T>().product_on_support(lists, n, d, p, z, gv);
    }
    if (!gd) return;
    std::fill_n(gd, n * p, T(0));
    unit_kernels<T>().outer(lists, 0, n, z, gd, p);
}

template <class T>
std::tuple<Tensor, Tensor> decode_gradients(Tensor grad, Tensor values, Tensor indices, Tensor d,
                                            int64_t mask) {
    const bool need_values = wants(mask, 0), need_d = wants(mask, 1);
    const int64_t batch = values.size(0), m = values.size(1), n = d.size(0), p = d.size(1);
    Tensor grad_values = empty_if(need_values, values, {batch, m});
    Tensor grad_d =
        need_d ? gradient_of_matrix(d, values.scalar_type()) : empty_if(false, values, {});
    if (!need_values && !need_d) return {grad_values, grad_d};
    grad = torch::stable::contiguous(grad);
    values = torch::stable::contiguous(values);
    indices = torch::stable::contiguous(indices);
    Atoms<T> atoms(d);
    const T* g = static_cast<const T*>(grad.const_data_ptr());
    const T* v = static_cast<const T*>(values.const_data_ptr());
    const int64_t* at = static_cast<const int64_t*>(indices.const_data_ptr());
    T* gv = need_values ? static_cast<T*>(grad_values.mutable_data_ptr()) : nullptr;
    T* gd = need_d ? static_cast<T*>(grad_d.mutable_data_ptr()) : nullptr;
    if (!atoms.transposed() && few_entries(batch, m, p)) {
        few_gradients(g, v, at, batch, m, gv ? atoms.data() : nullptr, n, p, gv, gd);
        return {grad_values, grad_d};
    }
    const T* dt = gv ? atoms.rows() : nullptr;
    const int64_t block = std::max<int64_t>(1, block_rows(batch, n * int64_t(sizeof(T))));
    const int64_t blocks = (batch + block - 1) / block;
    const BlockLists<T> lists(gd ? blocks : 0, p, block * m);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t b0, int64_t b1) {
        const Buffer<int32_t> narrow(gd ? block * m : 0);
        for (int64_t b = b0; b < b1; ++b) {
            const int64_t first = b * block, rows = std::min(block, batch - first);
            if (gv)
                decode_kernels<T>().dots(g + first * n, at + first * m, rows, m, dt, n,
                                         gv + first * m);
            if (!gd) continue;
            std::copy_n(at + first * m, rows * m, narrow.get());
            unit_kernels<T>().group({narrow.get(), v + first * m, nullptr, m}, rows, p, lists[b]);
        }
    });
    if (!gd) return {grad_values, grad_d};
    // The gradient has the layout of D; it is gathered as D'.
    std::optional<Buffer<T>> other;
    if (!atoms.transposed()) other.emplace(p * n);
    T* gdt = other ? other->get() : gd;
    torch::stable::parallel_for(0, p, 16, [&](int64_t i0, int64_t i1) {
        in_pieces(i0, i1, n * int64_t(sizeof(T)), [&](int64_t j0, int64_t j1) {
            std::fill_n(gdt + j0 * n, (j1 - j0) * n, T(0));
            for (int64_t b = 0; b < blocks; ++b)
                unit_kernels<T>().combine(lists[b], j0, j1, g + b * block * n, n, n, gdt);
        });
    });
    if (other) transpose_matrix<T>(gdt, p, n, gd);
    return {grad_values, grad_d};
}

void check_code(const Tensor& values, const Tensor& indices, const Tensor& d, const char* op) {
    STD_TORCH_CHECK(values.dim() == 2 && indices.dim() == 2 && d.dim() == 2 &&
                        values.size(0) == indices.size(0) && values.size(1) == indices.size(1),
                    op, ": expected values [B, m], indices [B, m] and D [n, p]");
    dtype_of(d, "D");
    STD_TORCH_CHECK(values.scalar_type() == d.scalar_type(), op, ": D has not the dtype of values");
    check_indices(indices, d.size(1), op);
}

}  // namespace

Tensor decode(Tensor values, Tensor indices, Tensor D) {
    check_code(values, indices, D, "decode");
    const ScalarType given = D.scalar_type(), type = accumulation_type(D);
    values = cast(values, type);
    D = cast_matrix(D, type);
    return cast(type == ScalarType::Double ? decode_rows<double>(values, indices, D)
                                           : decode_rows<float>(values, indices, D),
                given);
}

std::tuple<Tensor, Tensor> decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor D,
                                           int64_t mask) {
    check_code(values, indices, D, "decode_backward");
    STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == values.size(0) && grad.size(1) == D.size(0),
                    "decode_backward: grad must be [B, n]");
    dtype_of(grad, "grad");
    const ScalarType given = D.scalar_type(), type = accumulation_type(D);
    // The gradient of the values needs D, that of D its shape, dtype and layout alone.
    D = wants(mask, 0) ? cast_matrix(D, type) : D;
    const auto run =
        type == ScalarType::Double ? decode_gradients<double> : decode_gradients<float>;
    auto [grad_values, grad_d] = run(cast(grad, type), cast(values, type), indices, D, mask);
    return {cast(grad_values, given), cast(grad_d, given)};
}

}  // namespace deepl0::torch_ops
