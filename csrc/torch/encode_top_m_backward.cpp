// Backward of encode_top_m. With g the gradient of the last values, du_K = g on the support of
// stage K; going down, dS_k += du_{k+1} z_k' and du_k = S_k' du_{k+1} on the support of z_k; W x
// enters every stage, so dW = sum_b du_b x_b' and dx = du W with du the sum over the stages.
//
// Every du has m nonzeros a row: dS costs m^2 multiply-adds a row and stage instead of p^2, so does
// du (m^2 instead of p^2), dW at most K m n. Memory beyond the gradients: O(K B m).
//
// Only what is wanted is computed, in the same order of sums whatever else is: no unit lists
// without dW and dS, and for dx alone of one stage nothing but a gather-sum.
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "core/decode.h"
#include "torch/lists.h"

namespace deepl0::torch_ops {
namespace {

template <class T>
struct Arguments {
    T* grad;                 // [batch, m], of the last stage
    const int64_t* indices;  // [batch, m], likewise
    const T* saved_values;   // [stages - 1, batch, m]
    const int64_t* saved_indices;
    Matrix<const T> x, w;  // row-major; x for gw, w for gx
    const T* s;            // [p, p] per step, row-major, or of S' where transposed
    int64_t s_step_stride;
    bool transposed;
    int64_t batch, stages, m, n, p;
    T *gx, *gw, *gs;  // null where not wanted; gs in the layout of s
    double* gb;       // likewise, zeroed
    int64_t gs_step_stride;
    bool positive;  // an entry that is 0 passes no gradient

    /// du summed over the stages, and du of the first stage, are for x, W and the bias.
    bool needs_total() const { return gx || gw || gb; }

    const T* step(int64_t k) const { return s + k * s_step_stride; }
    int64_t steps() const { return stages - 1; }
    const int64_t* indices_of(int64_t k) const {
        return k == steps() ? indices : saved_indices + k * batch * m;
    }
    const T* values_of(int64_t k) const { return saved_values + k * batch * m; }
};

template <class T>
void sparse_backward(const Arguments<T>& a, int64_t block) {
    const auto& kernels = unit_kernels<T>();
    const int64_t blocks = (a.batch + block - 1) / block, row_entries = a.batch * a.m;
    const int64_t n = a.n, width = std::min(a.stages * a.m, a.p);
    const Buffer<int32_t> index(a.stages * row_entries);
    const Buffer<T> lower(a.steps() * row_entries);  // du of all stages but the last
    const auto index_of = [&](int64_t k) { return index.get() + k * row_entries; };
    const auto du_of = [&](int64_t k) {
        return k == a.steps() ? a.grad : lower.get() + k * row_entries;
    };
    std::vector<BlockLists<T>> step_lists;
    for (int64_t k = 0; a.gs && k < a.steps(); ++k)
        step_lists.emplace_back(blocks, a.p, block * a.m);
    const BlockLists<T> total_lists(a.gw || a.gb ? blocks : 0, a.p, block * width);

    // Down the stages, block by block: du, and who uses which unit.
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t b0, int64_t b1) {
        std::optional<Totals<T>> totals;
        if (a.steps() > 0 && a.needs_total()) totals.emplace(block, a.p, block * width);
        const BlockLists<T> passing(a.gs ? 0 : std::min<int64_t>(1, a.steps()), a.p, block * a.m);
        const Buffer<int32_t> place(a.transposed ? block * a.m : 0);
        std::vector<SparseRows<T>> du(a.stages);
        for (int64_t b = b0; b < b1; ++b) {
            const int64_t first = b * block, rows = std::min(block, a.batch - first);
            const int64_t offset = first * a.m, entries = rows * a.m;
            for (int64_t k = 0; k < a.stages; ++k) {
                du[k] = {index_of(k) + offset, du_of(k) + offset, nullptr, a.m};
                std::copy_n(a.indices_of(k) + offset, entries, index_of(k) + offset);
            }
            for (int64_t k = a.steps(); k > 0; --k) {
                UnitLists<T> lists = a.gs ? step_lists[k - 1][b] : passing[0];
                const bool descend = k > 1 || a.needs_total();
                T* out = lower.get() + (k - 1) * row_entries + offset;
                const SparseRows<T> below{du[k - 1].index, a.values_of(k - 1) + offset, nullptr,
                                          a.m};
                if (a.transposed) {
                    lists.place = place.get();
                    kernels.group(below, rows, a.p, lists);
                    if (descend) kernels.product_on_lists(lists, a.p, a.step(k - 1), du[k], out);
                } else {
                    kernels.group(du[k], rows, a.p, lists);
                    if (!descend) continue;
                    std::fill_n(out, entries, T(0));
                    kernels.product_on_support(lists, a.p, a.step(k - 1), a.p, below, out);
                }
                if (descend && a.positive) drop_zeros(below.value, entries, out);
            }
            if (!a.needs_total()) continue;
            const SparseRows<T> total = totals ? totals->sum(du, rows) : du[0];
            if (a.gw || a.gb) kernels.group(total, rows, a.p, total_lists[b]);
            if (a.gx)
                kernels.gather(total, rows, a.w.data, a.w.row_stride, n, nullptr, a.gx + first * n,
                               n);
        }
    });

    if (!a.gw && !a.gs && !a.gb) return;
    // The gradients of W, S and the bias, unit by unit: each thread owns rows of both.
    torch::stable::parallel_for(0, a.p, 16, [&](int64_t i0, int64_t i1) {
        for (int64_t k = 0; a.gs && k < a.steps(); ++k) {
            T* gs = a.gs + k * a.gs_step_stride;
            const int64_t from = (a.transposed ? k + 1 : k) * row_entries;
            for (int64_t i = i0; i < i1; ++i) {
                if (k == 0 || a.gs_step_stride > 0) std::fill_n(gs + i * a.p, a.p, T(0));
                for (int64_t b = 0; b < blocks; ++b) {
                    const int64_t offset = b * block * a.m;
                    const T* value = a.transposed ? du_of(k + 1) : a.values_of(k);
                    kernels.outer(step_lists[k][b], i, i + 1,
                                  {index.get() + from + offset, value + offset, nullptr, a.m}, gs,
                                  a.p);
                }
            }
        }
        for (int64_t b = 0; a.gb && b < blocks; ++b) add_coefficients(total_lists[b], i0, i1, a.gb);
        if (!a.gw) return;
        in_pieces(i0, i1, n * int64_t(sizeof(T)), [&](int64_t j0, int64_t j1) {
            std::fill_n(a.gw + j0 * n, (j1 - j0) * n, T(0));
            for (int64_t b = 0; b < blocks; ++b)
                kernels.combine(total_lists[b], j0, j1, a.x.data + b * block * a.x.row_stride,
                                a.x.row_stride, n, a.gw);
        });
    });
}

/// The same by dense products, for codes that are not sparse enough, in blocks of rows.
template <class T>
void dense_backward(const Arguments<T>& a, int64_t block) {
    const int64_t p = a.p, n = a.n;
    const Buffer<T> du(block * p), z(block * p), product(block * p), total(block * p);
    if (a.gw) std::fill_n(a.gw, p * n, T(0));
    const int64_t matrices = !a.gs ? 0 : a.gs_step_stride > 0 ? a.steps() : 1;
    std::fill_n(a.gs, matrices * p * p, T(0));
    for (int64_t first = 0; first < a.batch; first += block) {
        const int64_t rows = std::min(block, a.batch - first), offset = first * a.m;
        const auto dense = [&](const Buffer<T>& b) { return row_major(b.get(), rows, p); };
        const auto read = [&](const Buffer<T>& b) { return row_major<const T>(b.get(), rows, p); };
        for (int64_t k = a.steps(); k >= (a.needs_total() ? 0 : 1); --k) {
            const int64_t* at = a.indices_of(k) + offset;
            const bool top = k == a.steps();
            // du_k from the product of the stage above, on the support of this stage.
            torch::stable::parallel_for(0, rows, 16, [&](int64_t r0, int64_t r1) {
                for (int64_t r = r0; r < r1; ++r) {
                    T *d = du.get() + r * p, *t = total.get() + r * p;
                    std::fill_n(d, p, T(0));
                    if (top) std::fill_n(t, p, T(0));
                    for (int64_t j = r * a.m; j < (r + 1) * a.m; ++j) {
                        d[at[j]] = top ? a.grad[offset + j] : product.get()[r * p + at[j]];
                        if (a.positive && !top && a.values_of(k)[offset + j] == T(0))
                            d[at[j]] = T(0);
                        t[at[j]] += d[at[j]];
                    }
                    if (k == 0 || !a.gs) continue;
                    const int64_t* below = a.indices_of(k - 1) + offset;
                    const T* value = a.values_of(k - 1) + offset;
                    std::fill_n(z.get() + r * p, p, T(0));
                    for (int64_t j = r * a.m; j < (r + 1) * a.m; ++j)
                        z.get()[r * p + below[j]] = value[j];
                }
            });
            if (k == 0) break;
            const Matrix<const T> plain = row_major(a.step(k - 1), p, p);
            if (k > 1 || a.needs_total())
                mm<T>(dense(product), read(du), a.transposed ? plain.transposed() : plain);
            if (!a.gs) continue;
            const Matrix<T> gs = row_major(a.gs + (k - 1) * a.gs_step_stride, p, p);
            if (a.transposed)
                add_mm<T>(gs, read(z).transposed(), read(du));
            else
                add_mm<T>(gs, read(du).transposed(), read(z));
        }
        if (a.gw)
            add_mm<T>(row_major(a.gw, p, n), read(total).transposed(),
                      a.x.range(first, first + rows));
        if (a.gx) mm<T>(row_major(a.gx + first * n, rows, n), read(total), a.w);
        for (int64_t e = 0; a.gb && e < rows * p; ++e) a.gb[e % p] += double(total.get()[e]);
    }
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Gradients backward(Tensor grad, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
                   Tensor saved_indices, Tensor x, Tensor w, std::optional<Tensor> s,
                   int64_t mask) {
    Arguments<T> a{};
    a.positive = values.has_value();
    a.stages = saved_values.size(0) + 1;
    a.batch = grad.size(0);
    a.m = grad.size(1);
    a.n = x.size(1);
    a.p = w.size(0);
    Tensor gx = empty_if(wants(mask, 0), grad, {a.batch, a.n});
    Tensor gw = empty_if(wants(mask, 1), grad, {a.p, a.n});
    Tensor gs = s && wants(mask, 2) ? gradient_of_matrix(*s, grad.scalar_type())
                                    : empty_if(false, grad, {});
    Tensor gb = empty_if(wants(mask, 3), grad, {a.p});
    const bool nothing = a.batch == 0 || a.m == 0 || a.p == 0;
    if (nothing || a.steps() == 0) torch::stable::zero_(gs);
    if (nothing) {
        for (Tensor* t : {&gx, &gw, &gb}) torch::stable::zero_(*t);
        return {gx, gw, gs, gb};
    }
    const auto data_if = [&](int operand, const Tensor& t) {
        return wants(mask, operand) ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };
    a.gx = data_if(0, gx);
    a.gw = data_if(1, gw);
    a.gs = s && a.steps() > 0 ? data_if(2, gs) : nullptr;
    std::vector<double> bias(wants(mask, 3) ? a.p : 0);
    a.gb = wants(mask, 3) ? bias.data() : nullptr;
    if (!a.gx && !a.gw && !a.gs && !a.gb) return {gx, gw, gs, gb};
    for (Tensor* t : {&grad, &indices, &saved_values, &saved_indices})
        *t = torch::stable::contiguous(*t);
    if (values) {
        grad = torch::stable::clone(grad);
        const Tensor v = torch::stable::contiguous(*values);
        drop_zeros(static_cast<const T*>(v.const_data_ptr()), a.batch * a.m,
                   static_cast<T*>(grad.mutable_data_ptr()));
    }
    a.grad = static_cast<T*>(grad.mutable_data_ptr());
    a.indices = static_cast<const int64_t*>(indices.const_data_ptr());
    a.saved_values = static_cast<const T*>(saved_values.const_data_ptr());
    a.saved_indices = static_cast<const int64_t*>(saved_indices.const_data_ptr());
    if (a.steps() > 0) {
        const int64_t d = s->dim();
        a.transposed = by_columns(*s);
        if (!a.transposed && !(s->stride(d - 1) == 1 && s->stride(d - 2) == a.p))
            s = torch::stable::contiguous(*s);
        a.s = static_cast<const T*>(s->const_data_ptr());
        a.s_step_stride = d == 3 ? s->stride(0) : 0;
        a.gs_step_stride = d == 3 ? a.p * a.p : 0;
    }
    if (a.steps() == 0 && !a.gw && !a.gb && by_columns(w) && few_entries(a.batch, a.m, a.p)) {
        decode_kernels<T>().columns(a.grad, a.indices, a.batch, a.m,
                                    static_cast<const T*>(w.const_data_ptr()), a.n, a.p, a.gx);
        return {gx, gw, gs, gb};
    }
    if (a.gw) a.x = row_major_matrix<T>(x);
    if (a.gx) a.w = row_major_matrix<T>(w);

    // m^2 products of 0.62 ns in all against two dense ones: they meet at m = 0.16 to 0.18 p.
    if (a.m * 6 > a.p) {
        dense_backward(a, std::min<int64_t>(a.batch, 512));
    } else {
        sparse_backward(a, block_rows(a.batch, a.n * int64_t(sizeof(T))));
    }
    if (a.gb) std::copy(bias.begin(), bias.end(), static_cast<T*>(gb.mutable_data_ptr()));
    return {gx, gw, gs, gb};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_backward(
    Tensor grad_values, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
    Tensor saved_indices, Tensor x, Tensor W, std::optional<Tensor> S, int64_t mask) {
    const char* op = "encode_top_m_backward";
    STD_TORCH_CHECK(grad_values.dim() == 2 && saved_values.dim() == 3 && x.dim() == 2 &&
                        x.size(0) == grad_values.size(0),
                    op, ": grad_values must be [B, m], saved_values [K - 1, B, m]");
    check_encoder(x, W, S, saved_values.size(0) + 1, op);
    const std::vector<int64_t> saved{saved_values.size(0), grad_values.size(0),
                                     grad_values.size(1)};
    STD_TORCH_CHECK(shape_of(indices) == shape_of(grad_values) && shape_of(saved_values) == saved &&
                        shape_of(saved_indices) == saved,
                    op, ": the codes do not fit grad_values");
    STD_TORCH_CHECK(!values || (shape_of(*values) == shape_of(grad_values) &&
                                values->scalar_type() == grad_values.scalar_type()),
                    op, ": values must have the shape and dtype of grad_values");
    check_indices(indices, W.size(0), op);
    check_indices(saved_indices, W.size(0), op);
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    STD_TORCH_CHECK(saved_values.scalar_type() == type && grad_values.scalar_type() == given, op,
                    ": saved_values must have the accumulation dtype, grad_values that of x");
    if (S && saved_values.size(0) > 0) S = cast_matrix(*S, type);
    if (wants(mask, 0)) W = cast_matrix(W, type);
    if (wants(mask, 1)) x = cast(x, type);
    const auto run = type == ScalarType::Double ? backward<double> : backward<float>;
    if (values) values = cast(*values, type);
    auto [gx, gw, gs, gb] = run(cast(grad_values, type), values, indices, cast(saved_values, type),
                                saved_indices, x, W, S, mask);
    return {cast(gx, given), cast(gw, given), cast(gs, given), cast(gb, given)};
}

}  // namespace deepl0::torch_ops
