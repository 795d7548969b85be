// Backward of encode_l0 with D. Down the stages, from g = grad_z and with r_k = x - D z_{k-1}
// (r_1 = x): du_k = c(u_k) g, dtheta += sum e(u_k) g, q = W' du_k, dr = step_k q, dx += dr,
// dW += step_k du_k' r_k, db += du_k, dstep_k = <q, r_k>, dD -= dr' z_{k-1}, g = du_k - D' dr.
// z and r are computed again from the saved pre-activations.
//
// A block of rows at a time. Where few entries of du (of z; of what may carry a gradient in the
// stage below) are not 0, q and dW (dD; D' dr) go entry by entry, n multiply-adds for each, and
// else by dense products of 2 B p n flops. Which is which depends on the data alone, never on what
// is wanted. Workspace: O(block (n + p)), and copies of W and D' where they do not lie by units.
#include <optional>
#include <tuple>

#include "torch/factored.h"
#include "torch/stage_thresholds.h"

namespace deepl0::torch_ops {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kBlock = 512;  // whatever the threads; a multiple of the blocks of theta

template <class T>
struct Problem {
    const T* grad_z;
    const T* u;            // [stages, batch, p]
    Matrix<const T> x, w;  // row-major
    std::vector<T> steps;
    int64_t batch, n, p;
    T *gx, *gw, *gdt;    // null where not wanted; gdt: of D', [p, n]
    double *gb, *gstep;  // likewise; both zeroed, as are gw and gdt
    int64_t lowest;      // the last stage whose du is needed

    int64_t stages() const { return int64_t(steps.size()); }
    const T* u_of(int64_t k, int64_t row) const { return u + (k * batch + row) * p; }
};

/// The entries of sparse rows by unit.
template <class T>
class Grouped {
  public:
    Grouped(SparseRows<T> z, int64_t rows, int64_t p)
        : start_(p + 1), row_(z.end(rows - 1)), coefficient_(z.end(rows - 1)) {
        unit_kernels<T>().group(z, rows, p, lists());
    }
    UnitLists<T> lists() const { return {start_.get(), row_.get(), coefficient_.get(), nullptr}; }

  private:
    Buffer<int32_t> start_, row_;
    Buffer<T> coefficient_;
};

template <class T>
class Blocks {
  public:
    explicit Blocks(const Problem<T>& a, const Tensor& d)
        : a_(a),
          residuals_(a.x, d, a.batch * a.p),
          atoms_(d),
          rows_(std::min(kBlock, a.batch)),
          du_(rows_ * a.p),
          z_(rows_ * a.p),
          g_(rows_ * a.p),
          q_(rows_ * a.n),
          r_(rows_ * a.n),
          list_du_(rows_, a.p),
          list_z_(rows_, a.p) {}

    void add(const StageThresholds& h, int64_t first, int64_t rows, const ThetaPartials& partials) {
        const int64_t n = a_.n, p = a_.p;
        const Matrix<const T> q = row_major<const T>(q_.get(), rows, n);
        const Matrix<const T> r = row_major<const T>(r_.get(), rows, n);
        for (int64_t k = a_.stages() - 1; k >= a_.lowest; --k) {
            const T step = a_.steps[size_t(k)];
            const bool passes = k > a_.lowest, for_d = a_.gdt && k > 0;
            elementwise(h, k, first, rows, partials);
            const SparseRows<T> du = list_du_(du_.get(), rows);
            const SparseRows<T> z = k > 0 ? list_z_(z_.get(), rows) : SparseRows<T>{};
            for (int64_t e = 0; a_.gb && e < du.end(rows - 1); ++e)
                a_.gb[du.index[e]] += double(du.value[e]);
            if (a_.gw || a_.gstep) {
                if (k > 0)
                    residuals_(first, rows, z_.get(), z, step, r_.get());
                else
                    residuals_(first, rows, Codes<T>{}, step, r_.get());
            }
            if (a_.gw) outer(du, du_.get(), rows, r, a_.gw);
            if (!a_.gx && !a_.gstep && !passes && !for_d) continue;
            if (is_sparse(du, rows, p))
                each_row(rows, [&](int64_t r0, int64_t r1) {
                    const SparseRows<T> some{du.index, du.value, du.start + r0, 0};
                    unit_kernels<T>().gather(some, r1 - r0, a_.w.data, a_.w.row_stride, n, nullptr,
                                             q_.get() + r0 * n, n);
                });
            else
                mm<T>(row_major(q_.get(), rows, n), row_major<const T>(du_.get(), rows, p), a_.w);
            if (a_.gstep) {
                double sum = 0;
                for (int64_t e = 0; e < rows * n; ++e) sum += double(q.data[e]) * double(r.data[e]);
                a_.gstep[k] += sum / double(step);
            }
            for (int64_t e = 0; e < rows * n; ++e) q_.get()[e] *= -step;
            for (int64_t e = 0; a_.gx && e < rows * n; ++e) {
                T& gx = a_.gx[first * n + e];
                gx = k + 1 == a_.stages() ? -q.data[e] : gx - q.data[e];
            }
            if (for_d) outer(z, z_.get(), rows, q, a_.gdt);
            if (passes) pass_down(h, k, first, rows, z, q);
        }
    }

  private:
    template <class F>
    static void each_row(int64_t rows, F f) {
        torch::stable::parallel_for(0, rows, 32, f);
    }

    /// du of stage k and z of the stage below.
    void elementwise(const StageThresholds& h, int64_t k, int64_t first, int64_t rows,
                     const ThetaPartials& partials) const {
        const int64_t p = a_.p;
        const T* above = k + 1 == a_.stages() ? a_.grad_z + first * p : g_.get();
        torch::stable::parallel_for(0, threshold_blocks(rows), 1, [&](int64_t b0, int64_t b1) {
            h.backward(k, above, a_.u_of(k, first), du_.get(), rows, p, b0, b1,
                       partials.at(k, first));
            const int64_t r0 = b0 * kThresholdBlockRows;
            const int64_t r1 = std::min(rows, b1 * kThresholdBlockRows);
            if (k > 0) h.apply(k - 1, a_.u_of(k - 1, first + r0), r1 - r0, p, z_.get() + r0 * p);
        });
    }

    /// out [p, n] += c' x, c [rows, p] as a list of nonzeros and dense.
    void outer(SparseRows<T> listed, const T* c, int64_t rows, Matrix<const T> x, T* out) const {
        const int64_t n = a_.n, p = a_.p;
        if (!is_sparse(listed, rows, p)) {
            add_mm<T>(row_major(out, p, n), row_major(c, rows, p).transposed(), x);
            return;
        }
        const Grouped<T> units(listed, rows, p);
        torch::stable::parallel_for(0, p, 16, [&](int64_t i0, int64_t i1) {
            unit_kernels<T>().combine(units.lists(), i0, i1, x.data, n, n, out);
        });
    }

    /// g of the stage below, du + D' q, where it may carry a gradient.
    void pass_down(const StageThresholds& h, int64_t k, int64_t first, int64_t rows,
                   SparseRows<T> support, Matrix<const T> q) {
        const int64_t n = a_.n, p = a_.p;
        if (!h.same_support()) {  // z is no longer needed
            each_row(rows, [&](int64_t r0, int64_t r1) {
                h.support(k - 1, a_.u_of(k - 1, first + r0), r1 - r0, p, z_.get() + r0 * p);
            });
            support = list_z_(z_.get(), rows);
        }
        const bool sparse = !h.has_zero() && is_sparse(support, rows, p);
        const T* const atoms = atoms_.rows();
        if (!sparse) {
            addmm<T>(row_major(g_.get(), rows, p), row_major<const T>(du_.get(), rows, p), q,
                     row_major(atoms, p, n).transposed());
            return;
        }
        each_row(rows, [&](int64_t r0, int64_t r1) {
            std::vector<int64_t> at;
            std::vector<T> dots;
            for (int64_t i = r0; i < r1; ++i) {
                const int64_t begin = support.begin(i), m = support.end(i) - begin;
                at.assign(support.index + begin, support.index + begin + m);
                dots.resize(size_t(m));
                decode_kernels<T>().dots(q.data + i * n, at.data(), 1, m, atoms, n, dots.data());
                T* const g = g_.get() + i * p;
                std::fill_n(g, p, T(0));
                for (size_t e = 0; e < size_t(m); ++e)
                    g[at[e]] = du_.get()[i * p + at[e]] + dots[e];
            }
        });
    }

    const Problem<T>& a_;
    Residuals<T> residuals_;
    Atoms<T> atoms_;
    int64_t rows_;
    Buffer<T> du_, z_, g_, q_, r_;
    Listed<T> list_du_, list_z_;
};

template <class T>
Gradients backward(Tensor grad, Tensor saved, Tensor x, Tensor w, Tensor d,
                   const std::vector<T>& steps, const Tensor& theta, const StageThresholds& h,
                   int64_t mask) {
    Problem<T> a{};
    a.steps = steps;
    a.batch = x.size(0);
    a.n = x.size(1);
    a.p = w.size(0);
    const int64_t stages = a.stages();
    const bool need_theta = wants(mask, 3);
    Tensor gx = empty_if(wants(mask, 0), grad, {a.batch, a.n});
    Tensor gw = empty_if(wants(mask, 1), grad, {a.p, a.n});
    Tensor gd =
        wants(mask, 2) ? gradient_of_matrix(d, grad.scalar_type()) : empty_if(false, grad, {});
    Tensor gtheta = empty_if(need_theta, theta, shape_of(theta));
    Tensor gb = empty_if(wants(mask, 4), grad, {a.p});
    Tensor gstep = empty_if(wants(mask, 5), grad, {stages});
    for (Tensor t : {gw, gb, gstep}) torch::stable::zero_(t);
    const Gradients result{gx, gw, gd, gtheta, gb, gstep};
    a.lowest = mask & ~int64_t(4) ? 0 : 1;
    const bool need_d = wants(mask, 2) && stages > 1;
    if (a.batch == 0 || a.p == 0 || !need_d) torch::stable::zero_(gd);
    if (a.batch == 0 || a.p == 0) {
        for (Tensor t : {gx, gtheta}) torch::stable::zero_(t);
        return result;
    }
    const auto data_if = [](bool wanted, const Tensor& t) {
        return wanted ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };
    std::vector<double> bias(wants(mask, 4) ? a.p : 0), dsteps(wants(mask, 5) ? stages : 0);
    a.gb = bias.empty() ? nullptr : bias.data();
    a.gstep = dsteps.empty() ? nullptr : dsteps.data();
    a.gx = data_if(wants(mask, 0), gx);
    a.gw = data_if(wants(mask, 1), gw);
    if (mask == 0 || stages <= a.lowest) return result;
    std::optional<Buffer<T>> plain;  // the gradient of D', where that of D does not lie by atoms
    if (need_d && !by_columns(d)) plain.emplace(a.p * a.n);
    a.gdt = plain ? plain->get() : data_if(need_d, gd);
    if (a.gdt) std::fill_n(a.gdt, a.p * a.n, T(0));
    a.x = row_major_matrix<T>(x);
    a.w = row_major_matrix<T>(w);
    grad = torch::stable::contiguous(grad);
    saved = torch::stable::contiguous(saved);
    a.grad_z = static_cast<const T*>(grad.const_data_ptr());
    a.u = static_cast<const T*>(saved.const_data_ptr());
    const ThetaPartials partials(need_theta, stages, a.batch, a.p, h.per_entry());
    Blocks<T> blocks(a, d);
    for (int64_t first = 0; first < a.batch; first += kBlock)
        blocks.add(h, first, std::min(kBlock, a.batch - first), partials);
    if (plain) transpose_matrix<T>(plain->get(), a.p, a.n, static_cast<T*>(gd.mutable_data_ptr()));
    if (a.gb) std::copy(bias.begin(), bias.end(), static_cast<T*>(gb.mutable_data_ptr()));
    if (a.gstep) std::copy(dsteps.begin(), dsteps.end(), static_cast<T*>(gstep.mutable_data_ptr()));
    if (need_theta) partials.reduce_into(h, stages, static_cast<T*>(gtheta.mutable_data_ptr()));
    return result;
}

}  // namespace

Gradients encode_l0_factored_backward(Tensor grad_z, Tensor saved, Tensor x, Tensor W, Tensor D,
                                      std::optional<Tensor> step, Tensor theta, double sigma,
                                      Threshold kind, int64_t mask) {
    const char* op = "encode_l0_factored_backward";
    check_factored(x, W, D, op);
    STD_TORCH_CHECK(saved.dim() == 3 && saved.size(0) > 0 && saved.size(1) == x.size(0) &&
                        saved.size(2) == W.size(0) &&
                        shape_of(grad_z) == (std::vector<int64_t>{x.size(0), W.size(0)}),
                    op, ": saved [K, B, p] and grad_z [B, p] do not fit x and W");
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const DType code = dtype_of(x, "x");
    STD_TORCH_CHECK(saved.scalar_type() == type && grad_z.scalar_type() == given, op,
                    ": saved must have the accumulation dtype, grad_z that of x");
    const StageThresholds h(op, theta, saved.size(0), W.size(0), code, sigma, kind);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        return backward<T>(cast(grad_z, type), saved, cast(x, type), cast(W, type),
                           cast_matrix(D, type), steps_of<T>(op, step, saved.size(0)), theta, h,
                           mask);
    };
    auto [gx, gw, gd, gtheta, gb, gstep] =
        type == ScalarType::Double ? run(double()) : run(float());
    return {cast(gx, given), cast(gw, given), cast(gd, given), gtheta, cast(gb, given), gstep};
}

}  // namespace deepl0::torch_ops
