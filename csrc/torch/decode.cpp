#include "core/decode.h"

#include <optional>
#include <tuple>

#include "torch/lists.h"

namespace deepl0::torch_ops {
namespace {

/// D' [p, n] of D [n, p]: D itself where it is a transposed view, else a copy.
template <class T>
class Atoms {
  public:
    explicit Atoms(Tensor& d) : n_(d.size(0)), p_(d.size(1)) {
        if (d.stride(0) == 1 && d.stride(1) == n_ && p_ > 1) {
            transposed_ = true;
        } else {
            d = torch::stable::contiguous(d);
        }
        data_ = static_cast<const T*>(d.const_data_ptr());
    }

    bool transposed() const { return transposed_; }
    const T* data() const { return data_; }
    const T* rows() {
        if (transposed_) return data_;
        copy_.emplace(n_ * p_);
        transpose_matrix<T>(data_, n_, p_, copy_->get());
        return copy_->get();
    }

  private:
    int64_t n_, p_;
    bool transposed_ = false;
    const T* data_;
    std::optional<Buffer<T>> copy_;
};

/// So few entries that a transposed copy of D costs more than scattered reads of it.
bool few(int64_t batch, int64_t m, int64_t p) { return m > 0 && batch * m < p / 4; }

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
    if (!atoms.transposed() && few(batch, m, p)) {
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
    std::fill_n(gv, batch * m, T(0));
    unit_kernels<T>().product_on_support(lists, n, d, p, z, gv);
    std::fill_n(gd, n * p, T(0));
    unit_kernels<T>().outer(lists, 0, n, z, gd, p);
}

template <class T>
std::tuple<Tensor, Tensor> decode_gradients(Tensor grad, Tensor values, Tensor indices, Tensor d) {
    grad = torch::stable::contiguous(grad);
    values = torch::stable::contiguous(values);
    indices = torch::stable::contiguous(indices);
    const int64_t batch = values.size(0), m = values.size(1), n = d.size(0), p = d.size(1);
    Tensor grad_values = fresh({batch, m}, values.scalar_type());
    Atoms<T> atoms(d);
    // The gradient has the layout of D; it is gathered as D'.
    Tensor grad_d = torch::stable::new_empty(
        d, atoms.transposed() ? std::vector<int64_t>{p, n} : std::vector<int64_t>{n, p});
    const T* g = static_cast<const T*>(grad.const_data_ptr());
    const T* v = static_cast<const T*>(values.const_data_ptr());
    const int64_t* at = static_cast<const int64_t*>(indices.const_data_ptr());
    T* gv = static_cast<T*>(grad_values.mutable_data_ptr());
    if (!atoms.transposed() && few(batch, m, p)) {
        few_gradients(g, v, at, batch, m, atoms.data(), n, p, gv,
                      static_cast<T*>(grad_d.mutable_data_ptr()));
        return {grad_values, grad_d};
    }
    std::optional<Buffer<T>> other;
    if (!atoms.transposed()) other.emplace(p * n);
    T* gdt = other ? other->get() : static_cast<T*>(grad_d.mutable_data_ptr());
    const T* dt = atoms.rows();

    const int64_t block = std::max<int64_t>(1, block_rows(batch, n * int64_t(sizeof(T))));
    const int64_t blocks = (batch + block - 1) / block;
    const BlockLists<T> lists(blocks, p, block * m);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t b0, int64_t b1) {
        const Buffer<int32_t> narrow(block * m);
        for (int64_t b = b0; b < b1; ++b) {
            const int64_t first = b * block, rows = std::min(block, batch - first);
            decode_kernels<T>().dots(g + first * n, at + first * m, rows, m, dt, n, gv + first * m);
            std::copy_n(at + first * m, rows * m, narrow.get());
            unit_kernels<T>().group({narrow.get(), v + first * m, nullptr, m}, rows, p, lists[b]);
        }
    });
    torch::stable::parallel_for(0, p, 16, [&](int64_t i0, int64_t i1) {
        std::fill_n(gdt + i0 * n, (i1 - i0) * n, T(0));
        for (int64_t b = 0; b < blocks; ++b)
            unit_kernels<T>().combine(lists[b], i0, i1, g + b * block * n, n, n, gdt);
    });
    if (atoms.transposed()) return {grad_values, torch::stable::transpose(grad_d, 0, 1)};
    transpose_matrix<T>(gdt, p, n, static_cast<T*>(grad_d.mutable_data_ptr()));
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
    D = cast(D, type);
    return cast(type == ScalarType::Double ? decode_rows<double>(values, indices, D)
                                           : decode_rows<float>(values, indices, D),
                given);
}

std::tuple<Tensor, Tensor> decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor D) {
    check_code(values, indices, D, "decode_backward");
    STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == values.size(0) && grad.size(1) == D.size(0),
                    "decode_backward: grad must be [B, n]");
    dtype_of(grad, "grad");
    const ScalarType given = D.scalar_type(), type = accumulation_type(D);
    const ScalarType given_values = values.scalar_type();
    grad = cast(grad, type);
    values = cast(values, type);
    D = cast(D, type);
    auto [grad_values, grad_d] = type == ScalarType::Double
                                     ? decode_gradients<double>(grad, values, indices, D)
                                     : decode_gradients<float>(grad, values, indices, D);
    return {cast(grad_values, given_values), cast(grad_d, given)};
}

}  // namespace deepl0::torch_ops
