// Backward of encode_top_m with D. With du_k the gradient of the pre-activations of stage k, on its
// support, and r_k = x - D z_{k-1} its residual (r_1 = x):
//   q_k = W' du_k, dr_k = step_k q_k, dx += dr_k, dW += step_k du_k r_k', db += du_k,
//   dstep_k = <q_k, r_k>, dD -= dr_k z_{k-1}', du_{k-1} = du_k - D' dr_k on the support of z_{k-1}.
// Every sum over units runs over m entries of a row: 2 B K m n flops for q, for dW, and for each of
// dD, du and the residuals below the last stage. Memory beyond the gradients: O(K B (n + m)).
#include <numeric>
#include <tuple>
#include <vector>

#include "torch/factored.h"

namespace deepl0::torch_ops {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
struct Problem {
    Matrix<const T> x, w;  // row-major
    std::vector<T> steps;
    std::vector<Codes<T>> z;  // of every stage; of the last only the indices
    std::vector<T*> du;       // [batch, m] of every stage; of the last given
    int64_t batch, n, p;
    bool positive;
    T *gx, *gw, *gdt;    // null where not wanted; gdt [p, n]
    double *gb, *gstep;  // likewise, gb zeroed

    int64_t stages() const { return int64_t(z.size()); }
    /// The lowest stage whose du is for something.
    int64_t lowest() const { return gx || gw || gb || gstep ? 0 : 1; }
};

/// lower[j] += upper[i] where the indices of a row agree, in any order. units: p zeros, left so.
template <class T>
void add_where_equal(const T* upper, const int64_t* at_upper, int64_t m_upper, T* lower,
                     const int64_t* at_lower, int64_t m_lower, T* units) {
    for (int64_t i = 0; i < m_upper; ++i) units[at_upper[i]] = upper[i];
    for (int64_t j = 0; j < m_lower; ++j) lower[j] += units[at_lower[j]];
    for (int64_t i = 0; i < m_upper; ++i) units[at_upper[i]] = T(0);
}

/// Whatever the block, and so the number of threads, all sums run in one order: over ascending
/// stages, rows and entries.
template <class T>
class Backward {
  public:
    Backward(const Problem<T>& a, const Tensor& d)
        : a_(a),
          block_(std::max<int64_t>(1, block_rows(a.batch, a.n * int64_t(sizeof(T))))),
          blocks_((a.batch + block_ - 1) / block_),
          atoms_(d),
          dots_(a.gstep ? a.batch * a.stages() : 0) {
        const int64_t stages = a.stages(), row_entries = a.batch * a.n;
        if (stages > 1) {
            entries_ = a.batch * std::max_element(a.z.begin(), a.z.end() - 1, [](auto& s, auto& t) {
                                     return s.m < t.m;
                                 })->m;
            residuals_.emplace(a.x, d, entries_);
            if (stages - 1 > a.lowest() || a.lowest() == 0) atoms_rows_ = atoms_.rows();
        }
        for (int64_t k = 0; k < stages; ++k) {
            const int64_t m = a.z[size_t(k)].m;
            index_.emplace_back(a.batch * m);
            residual_.emplace_back(needs_residual() ? row_entries : 0);
            back_.emplace_back(k > 0 && a.gdt ? row_entries : 0);
            du_lists_.emplace_back(a.gw || a.gb ? blocks_ : 0, a.p, block_ * m);
            z_lists_.emplace_back(a.gdt && k + 1 < stages ? blocks_ : 0, a.p, block_ * m);
        }
    }

    void run() {
        torch::stable::parallel_for(0, blocks_, 1, [&](int64_t b0, int64_t b1) {
            const Buffer<T> q(block_ * a_.n), units(a_.p);
            std::fill_n(units.get(), a_.p, T(0));
            for (int64_t b = b0; b < b1; ++b) descend(b, q.get(), units.get());
        });
        for (int64_t k = 0; a_.gstep && k < a_.stages(); ++k) {
            const double* dots = dots_.get() + k * a_.batch;
            a_.gstep[k] = std::accumulate(dots, dots + a_.batch, 0.0);
        }
        if (a_.gw || a_.gb || a_.gdt)
            torch::stable::parallel_for(0, a_.p, 16, [&](int64_t i0, int64_t i1) {
                in_pieces(i0, i1, 2 * a_.n * int64_t(sizeof(T)),
                          [&](int64_t j0, int64_t j1) { sum(j0, j1); });
            });
    }

  private:
    bool needs_residual() const { return a_.gw || a_.gstep; }
    bool needs_q(int64_t k) const { return a_.gx || a_.gstep || k > 0; }

    /// du of all stages, and who uses which unit, for one block of rows.
    void descend(int64_t b, T* q, T* units) {
        const int64_t n = a_.n, first = b * block_, rows = std::min(block_, a_.batch - first);
        const auto& kernels = unit_kernels<T>();
        for (int64_t k = a_.stages() - 1; k >= a_.lowest(); --k) {
            const Codes<T> z = a_.z[size_t(k)].from(first);
            const T step = a_.steps[size_t(k)];
            T* const du = a_.du[size_t(k)] + first * z.m;
            int32_t* const index = index_[size_t(k)].get() + first * z.m;
            std::copy_n(z.indices, rows * z.m, index);
            const SparseRows<T> rows_of_du{index, du, nullptr, z.m};
            if (a_.gw || a_.gb) kernels.group(rows_of_du, rows, a_.p, du_lists_[size_t(k)][b]);
            if (needs_residual()) find_residual(k, first, rows);
            if (!needs_q(k)) continue;
            kernels.gather(rows_of_du, rows, a_.w.data, a_.w.row_stride, n, nullptr, q, n);
            if (a_.gstep) find_dots(k, first, rows, q);
            for (int64_t e = 0; e < rows * n; ++e) q[e] *= step;  // dr
            for (int64_t e = 0; a_.gx && e < rows * n; ++e)
                a_.gx[first * n + e] = k + 1 == a_.stages() ? q[e] : a_.gx[first * n + e] + q[e];
            if (k == 0) continue;
            for (int64_t e = 0; e < rows * n; ++e) q[e] = -q[e];
            const Codes<T> below = a_.z[size_t(k - 1)].from(first);
            if (a_.gdt) {
                std::copy_n(q, rows * n, back_[size_t(k)].get() + first * n);
                int32_t* const at = index_[size_t(k - 1)].get() + first * below.m;
                std::copy_n(below.indices, rows * below.m, at);
                kernels.group({at, below.values, nullptr, below.m}, rows, a_.p,
                              z_lists_[size_t(k - 1)][b]);
            }
            if (k > a_.lowest())
                pass_down(z, below, du, rows, q, units, a_.du[size_t(k - 1)] + first * below.m);
        }
    }

    /// du of the stage below, from ndr = -dr and du of this one.
    void pass_down(Codes<T> z, Codes<T> below, const T* du, int64_t rows, const T* ndr, T* units,
                   T* out) const {
        decode_kernels<T>().dots(ndr, below.indices, rows, below.m, atoms_rows_, a_.n, out);
        for (int64_t r = 0; r < rows; ++r)
            add_where_equal(du + r * z.m, z.indices + r * z.m, z.m, out + r * below.m,
                            below.indices + r * below.m, below.m, units);
        if (a_.positive) drop_zeros(below.values, rows * below.m, out);
    }

    /// step r of stage k.
    void find_residual(int64_t k, int64_t first, int64_t rows) const {
        T* const out = residual_[size_t(k)].get() + first * a_.n;
        const T step = a_.steps[size_t(k)];
        if (k > 0) {
            (*residuals_)(first, rows, a_.z[size_t(k - 1)], step, out);
            return;
        }
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < a_.n; ++c)
                out[r * a_.n + c] = step * a_.x.data[(first + r) * a_.x.row_stride + c];
    }

    /// <q, r> of every row.
    void find_dots(int64_t k, int64_t first, int64_t rows, const T* q) const {
        const T* r = residual_[size_t(k)].get() + first * a_.n;
        for (int64_t i = 0; i < rows; ++i) {
            double dot = 0;
            for (int64_t c = 0; c < a_.n; ++c)
                dot += double(q[i * a_.n + c]) * double(r[i * a_.n + c]);
            dots_.get()[k * a_.batch + first + i] = dot / double(a_.steps[size_t(k)]);
        }
    }

    /// The gradients of W, b and D for the units [i0, i1).
    void sum(int64_t i0, int64_t i1) const {
        const auto& kernels = unit_kernels<T>();
        const int64_t n = a_.n;
        for (T* g : {a_.gw, a_.gdt})
            if (g) std::fill_n(g + i0 * n, (i1 - i0) * n, T(0));
        for (int64_t k = 0; k < a_.stages(); ++k) {
            for (int64_t b = 0; b < blocks_; ++b) {
                const int64_t at = b * block_ * n;
                const auto& lists = du_lists_[size_t(k)];
                if (a_.gb) add_coefficients(lists[b], i0, i1, a_.gb);
                if (a_.gw)
                    kernels.combine(lists[b], i0, i1, residual_[size_t(k)].get() + at, n, n, a_.gw);
                if (a_.gdt && k > 0)
                    kernels.combine(z_lists_[size_t(k - 1)][b], i0, i1, back_[size_t(k)].get() + at,
                                    n, n, a_.gdt);
            }
        }
    }

    const Problem<T>& a_;
    int64_t block_, blocks_, entries_ = 0;
    Atoms<T> atoms_;
    const T* atoms_rows_ = nullptr;
    std::optional<Residuals<T>> residuals_;
    Buffer<double> dots_;
    std::vector<Buffer<int32_t>> index_;
    std::vector<Buffer<T>> residual_, back_;  // step r, and -dr
    std::vector<BlockLists<T>> du_lists_, z_lists_;
};

template <class T>
Gradients backward(Tensor grad, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
                   Tensor saved_indices, Tensor x, Tensor w, Tensor d, const std::vector<T>& steps,
                   const std::vector<int64_t>& m, int64_t mask) {
    const ScalarType type = grad.scalar_type();
    Problem<T> a{};
    a.steps = steps;
    a.batch = x.size(0);
    a.n = x.size(1);
    a.p = w.size(0);
    a.positive = values.has_value();
    const int64_t stages = int64_t(m.size());
    Tensor gx = empty_if(wants(mask, 0), grad, {a.batch, a.n});
    Tensor gw = empty_if(wants(mask, 1), grad, {a.p, a.n});
    Tensor gd = wants(mask, 2) ? gradient_of_matrix(d, type) : empty_if(false, grad, {});
    Tensor gb = empty_if(wants(mask, 3), grad, {a.p});
    Tensor gstep = empty_if(wants(mask, 4), grad, {stages});
    const Gradients result{gx, gw, gd, gb, gstep};
    if (a.batch == 0 || a.p == 0 || mask == 0) {
        for (Tensor t : {gx, gw, gd, gb, gstep}) torch::stable::zero_(t);
        return result;
    }
    if (stages == 1) torch::stable::zero_(gd);
    const auto data_if = [](bool wanted, const Tensor& t) {
        return wanted ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };
    std::vector<double> bias(wants(mask, 3) ? a.p : 0), dsteps(wants(mask, 4) ? stages : 0);
    a.gb = bias.empty() ? nullptr : bias.data();
    a.gstep = dsteps.empty() ? nullptr : dsteps.data();
    a.gx = data_if(wants(mask, 0), gx);
    a.gw = data_if(wants(mask, 1), gw);
    const bool need_d = wants(mask, 2) && stages > 1, by_atoms = by_columns(d);
    std::optional<Buffer<T>> gdt;
    if (need_d && !by_atoms) gdt.emplace(a.p * a.n);
    a.gdt = gdt ? gdt->get() : data_if(need_d, gd);

    for (Tensor* t : {&grad, &indices, &saved_values, &saved_indices})
        *t = torch::stable::contiguous(*t);
    if (values) {
        grad = torch::stable::clone(grad);
        const Tensor v = torch::stable::contiguous(*values);
        drop_zeros(static_cast<const T*>(v.const_data_ptr()), grad.numel(),
                   static_cast<T*>(grad.mutable_data_ptr()));
    }
    a.x = row_major_matrix<T>(x);
    a.w = row_major_matrix<T>(w);
    const Buffer<T> lower(saved_values.numel());
    for (int64_t k = 0, at = 0; k < stages; at += a.batch * m[size_t(k++)]) {
        const bool last = k + 1 == stages;
        const Tensor& v = last ? grad : saved_values;
        const Tensor& i = last ? indices : saved_indices;
        a.z.push_back({static_cast<T*>(v.mutable_data_ptr()) + (last ? 0 : at),
                       static_cast<int64_t*>(i.mutable_data_ptr()) + (last ? 0 : at),
                       m[size_t(k)]});
        a.du.push_back(last ? a.z.back().values : lower.get() + at);
    }
    if (stages > 1 || a.lowest() == 0) Backward<T>(a, d).run();
    if (gdt) transpose_matrix<T>(gdt->get(), a.p, a.n, static_cast<T*>(gd.mutable_data_ptr()));
    if (a.gb) std::copy(bias.begin(), bias.end(), static_cast<T*>(gb.mutable_data_ptr()));
    if (a.gstep) std::copy(dsteps.begin(), dsteps.end(), static_cast<T*>(gstep.mutable_data_ptr()));
    return result;
}

}  // namespace

Gradients encode_top_m_factored_backward(Tensor grad_values, std::optional<Tensor> values,
                                         Tensor indices, Tensor saved_values, Tensor saved_indices,
                                         Tensor x, Tensor W, Tensor D, std::optional<Tensor> step,
                                         std::vector<int64_t> m, int64_t mask) {
    const char* op = "encode_top_m_factored_backward";
    check_factored(x, W, D, op);
    STD_TORCH_CHECK(!m.empty(), op, ": m must have an entry for every stage, got none");
    for (const int64_t entries : m) check_m(entries, W.size(0));
    const int64_t before = std::accumulate(m.begin(), m.end() - 1, int64_t(0));
    const std::vector<int64_t> code{x.size(0), m.back()}, saved{x.size(0) * before};
    STD_TORCH_CHECK(shape_of(grad_values) == code && shape_of(indices) == code &&
                        shape_of(saved_values) == saved && shape_of(saved_indices) == saved &&
                        (!values || shape_of(*values) == code),
                    op, ": grad_values and the codes do not fit x and m");
    check_indices(indices, W.size(0), op);
    check_indices(saved_indices, W.size(0), op);
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    STD_TORCH_CHECK(saved_values.scalar_type() == type && grad_values.scalar_type() == given &&
                        (!values || values->scalar_type() == given),
                    op, ": saved_values must have the accumulation dtype, grad_values that of x");
    if (values) values = cast(*values, type);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        return backward<T>(cast(grad_values, type), values, indices, saved_values, saved_indices,
                           cast(x, type), cast(W, type), cast_matrix(D, type),
                           steps_of<T>(op, step, int64_t(m.size())), m, mask);
    };
    auto [gx, gw, gd, gb, gstep] = type == ScalarType::Double ? run(double()) : run(float());
    return {cast(gx, given), cast(gw, given), cast(gd, given), cast(gb, given), gstep};
}

}  // namespace deepl0::torch_ops
