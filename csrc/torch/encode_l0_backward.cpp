// Backward of encode_l0. Down the stages, from g = grad_z: du_k = c(u_k) g, dtheta += sum e(u_k) g,
// dS += du_k' z_{k-1}, g = du_k S; with du the sum over the stages dW = du' x, dx = du W, and db is
// its sum over the rows. z is recomputed from the saved pre-activations.
//
// A block of rows whose du and z are sparse goes entry by entry: with d and z nonzeros a row, d z
// multiply-adds for dS, d times the support of c and e for g, both instead of p^2. The other blocks
// use dense products. Which is which depends on the data alone, never on what is wanted.
#include <optional>
#include <tuple>

#include "torch/lists.h"
#include "torch/stage_thresholds.h"
#include "torch/steps.h"

namespace deepl0::torch_ops {
namespace {

template <class T>
struct Problem {
    const T* grad_z;
    const T* u;            // [stages, batch, p]
    Matrix<const T> x, w;  // row-major; x for gw, w for gx
    const T* s;            // row-major [p, p] per step
    int64_t s_stride, stages, batch, n, p;
    T *gx, *gw, *gs;  // null where not wanted; gs row-major
    double* gb;       // likewise
    int64_t gs_stride;
    bool needs_first;  // whether du of the first stage is for something: all but S

    bool needs_total() const { return gx || gw || gb; }
    /// The last stage whose du is needed.
    int64_t lowest() const { return needs_first ? 0 : 1; }

    const T* u_of(int64_t k, int64_t row) const { return u + (k * batch + row) * p; }
    Matrix<const T> step(int64_t k) const { return row_major(s + k * s_stride, p, p); }
};

/// Sparse rows that grow.
template <class T>
struct Entries {
    std::vector<int32_t> index, start{0};
    std::vector<T> value;

    /// Appends the nonzeros of a dense row.
    void add(const T* row, int64_t p) {
        const size_t at = size_t(start.back());
        if (index.size() < at + size_t(p) + 16) {
            index.resize(2 * at + size_t(p) + 16);
            value.resize(index.size());
        }
        start.push_back(start.back() + int32_t(unit_kernels<T>().compress(row, p, index.data() + at,
                                                                          value.data() + at)));
    }
    int64_t count() const { return start.back(); }
    SparseRows<T> rows() const { return {index.data(), value.data(), start.data(), 0}; }
};

/// Lists of one block.
template <class T>
struct Lists {
    Buffer<int32_t> start, row;
    Buffer<T> coefficient;
    Lists(int64_t p, int64_t entries) : start(p + 1), row(entries), coefficient(entries) {}
    UnitLists<T> lists() const { return {start.get(), row.get(), coefficient.get(), nullptr}; }
};

/// What a sparse block leaves for the gradients of S and W.
template <class T>
struct SparseBlock {
    bool dense = false;
    std::vector<Entries<T>> z;    // of stage k, k < stages - 1
    std::vector<Lists<T>> steps;  // du of stage k + 1 by unit, last step first
    std::optional<Lists<T>> total;
};

constexpr int64_t kTile = kThresholdBlockRows;

/// du of stage k for rows [first, first + rows), g given densely tile by tile.
template <class T, class F>
Entries<T> stage_gradient(const Problem<T>& a, const StageThresholds& h, int64_t k, int64_t first,
                          int64_t rows, const ThetaPartials& partials, T* du, const F& g_of_tile) {
    Entries<T> out;
    for (int64_t t = 0; t < rows; t += kTile) {
        const int64_t n = std::min(kTile, rows - t);
        h.backward(k, g_of_tile(t, n), a.u_of(k, first + t), du, n, a.p, 0, 1,
                   partials.at(k, first + t));
        for (int64_t r = 0; r < n; ++r) out.add(du + r * a.p, a.p);
    }
    return out;
}

/// The descent of one block, or dense = true as soon as it turns out not to be sparse. The limit is
/// where 0.4 ns an entry of dS and 0.22 ns one of g (measured) meet two products of 2 p^2 flops.
template <class T>
SparseBlock<T> sparse_block(const Problem<T>& a, const StageThresholds& h, int64_t first,
                            int64_t rows, const ThetaPartials& partials) {
    const auto& kernels = unit_kernels<T>();
    const int64_t p = a.p;
    const double limit = 0.05 * double(p) * double(p) * double(rows);
    const Buffer<T> du_tile(kTile * p), g_tile(kTile * p);
    SparseBlock<T> block;
    block.z.resize(size_t(a.stages - 1));
    std::vector<Entries<T>> du(size_t(a.stages));
    du.back() = stage_gradient(a, h, a.stages - 1, first, rows, partials, du_tile.get(),
                               [&](int64_t t, int64_t) { return a.grad_z + (first + t) * p; });
    for (int64_t k = a.stages - 2; k >= 0; --k) {
        Entries<T>& z = block.z[size_t(k)];
        Entries<T> at;
        for (int64_t r = 0; r < rows; ++r) {
            h.apply(k, a.u_of(k, first + r), 1, p, g_tile.get());
            z.add(g_tile.get(), p);
            if (h.same_support()) continue;
            h.support(k, a.u_of(k, first + r), 1, p, g_tile.get());
            at.add(g_tile.get(), p);
        }
        const SparseRows<T> above = du[size_t(k + 1)].rows();
        const SparseRows<T> support = h.same_support() ? z.rows() : at.rows();
        double products = 0;
        for (int64_t r = 0; r < rows; ++r)
            products +=
                double(above.end(r) - above.begin(r)) *
                double(z.rows().end(r) - z.rows().begin(r) + support.end(r) - support.begin(r));
        if (products > limit) {
            block.dense = true;
            return block;
        }
        const int64_t entries = support.end(rows - 1);
        block.steps.emplace_back(p, du[size_t(k + 1)].count());
        kernels.group(above, rows, p, block.steps.back().lists());
        if (k < a.lowest()) break;
        const Buffer<T> g(entries);
        std::fill_n(g.get(), entries, T(0));
        kernels.product_on_support(block.steps.back().lists(), p, a.step(k).data, p, support,
                                   g.get());
        du[size_t(k)] = stage_gradient(
            a, h, k, first, rows, partials, du_tile.get(), [&](int64_t t, int64_t n) {
                std::fill_n(g_tile.get(), n * p, T(0));
                for (int64_t r = 0; r < n; ++r)
                    for (int64_t e = support.begin(t + r); e < support.end(t + r); ++e)
                        g_tile.get()[r * p + support.index[e]] = g.get()[e];
                return static_cast<const T*>(g_tile.get());
            });
        if (a.gs) continue;
        z = Entries<T>();
        block.steps.clear();
    }
    if (!a.needs_total()) return block;
    int64_t entries = 0;
    std::vector<SparseRows<T>> all;
    for (const Entries<T>& stage : du) {
        entries += stage.count();
        all.push_back(stage.rows());
    }
    Totals<T> totals(rows, p, entries);
    const SparseRows<T> total = totals.sum(all, rows);
    if (a.gw || a.gb) {
        block.total.emplace(p, entries);
        kernels.group(total, rows, p, block.total->lists());
    }
    if (a.gx)
        kernels.gather(total, rows, a.w.data, a.w.row_stride, a.n, nullptr, a.gx + first * a.n,
                       a.n);
    return block;
}

/// gS, gW and gb of the sparse blocks: each thread owns rows of them.
template <class T>
void add_sparse(const Problem<T>& a, const std::vector<SparseBlock<T>>& blocks, int64_t size) {
    if (!a.gw && !a.gs && !a.gb) return;
    torch::stable::parallel_for(0, a.p, 16, [&](int64_t i0, int64_t i1) {
        for (int64_t k = 0; a.gs && k + 1 < a.stages; ++k) {
            for (int64_t i = i0; i < i1; ++i) {
                for (const SparseBlock<T>& b : blocks) {
                    if (b.dense) continue;
                    unit_kernels<T>().outer(b.steps[size_t(a.stages - 2 - k)].lists(), i, i + 1,
                                            b.z[size_t(k)].rows(), a.gs + k * a.gs_stride, a.p);
                }
            }
        }
        if (!a.gw && !a.gb) return;
        in_pieces(i0, i1, a.x.cols * int64_t(sizeof(T)), [&](int64_t j0, int64_t j1) {
            for (size_t b = 0; b < blocks.size(); ++b) {
                if (blocks[b].dense) continue;
                if (a.gb) add_coefficients(blocks[b].total->lists(), j0, j1, a.gb);
                if (!a.gw) continue;
                unit_kernels<T>().combine(blocks[b].total->lists(), j0, j1,
                                          a.x.data + int64_t(b) * size * a.x.row_stride,
                                          a.x.row_stride, a.x.cols, a.gw);
            }
        });
    });
}

/// Everything for one block by dense products.
template <class T>
class DenseBlocks {
  public:
    DenseBlocks(const Problem<T>& a, int64_t block)
        : a_(a),
          du_(block * a.p),
          total_(a.needs_total() ? block * a.p : 0),
          z_(a.gs ? block * a.p : 0),
          g_(block * a.p) {}

    void add(const StageThresholds& h, int64_t first, int64_t rows,
             const ThetaPartials& partials) const {
        const int64_t p = a_.p, n = a_.n;
        const Matrix<const T> du = view(du_, rows), z = view(z_, rows), total = view(total_, rows);
        for (int64_t k = a_.stages - 1; k >= a_.lowest(); --k) {
            elementwise(h, k, first, rows, partials);
            if (k == 0) break;
            if (k > a_.lowest()) mm<T>(row_major(g_.get(), rows, p), du, a_.step(k - 1));
            if (a_.gs)
                add_mm<T>(row_major(a_.gs + (k - 1) * a_.gs_stride, p, p), du.transposed(), z);
        }
        if (a_.gw)
            add_mm<T>(row_major(a_.gw, p, n), total.transposed(), a_.x.range(first, first + rows));
        if (a_.gx) mm<T>(row_major(a_.gx + first * n, rows, n), total, a_.w);
        for (int64_t e = 0; a_.gb && e < rows * p; ++e) a_.gb[e % p] += double(total.data[e]);
    }

  private:
    Matrix<const T> view(const Buffer<T>& b, int64_t rows) const {
        return row_major<const T>(b.get(), rows, a_.p);
    }

    /// du and the total of stage k, and z of the stage below.
    void elementwise(const StageThresholds& h, int64_t k, int64_t first, int64_t rows,
                     const ThetaPartials& partials) const {
        const int64_t p = a_.p;
        const bool top = k == a_.stages - 1;
        const T* above = top ? a_.grad_z + first * p : g_.get();
        torch::stable::parallel_for(0, threshold_blocks(rows), 1, [&](int64_t b0, int64_t b1) {
            h.backward(k, above, a_.u_of(k, first), du_.get(), rows, p, b0, b1,
                       partials.at(k, first));
            const int64_t r0 = b0 * kTile, r1 = std::min(rows, b1 * kTile);
            for (int64_t e = r0 * p; a_.needs_total() && e < r1 * p; ++e)
                total_.get()[e] = top ? du_.get()[e] : total_.get()[e] + du_.get()[e];
            if (k > 0 && a_.gs)
                h.apply(k - 1, a_.u_of(k - 1, first + r0), r1 - r0, p, z_.get() + r0 * p);
        });
    }

    const Problem<T>& a_;
    Buffer<T> du_, total_, z_, g_;
};

/// The work on row-major S and gS; gs, gw and gb come zeroed.
template <class T>
void run_blocks(const Problem<T>& a, const StageThresholds& h, const ThetaPartials& partials) {
    constexpr int64_t block = 512;  // whatever the threads; a multiple of the tiles of theta
    const int64_t count = (a.batch + block - 1) / block;
    const auto rows_of = [&](int64_t b) { return std::min(block, a.batch - b * block); };
    std::vector<SparseBlock<T>> blocks(static_cast<size_t>(count));
    const bool sparse = !h.has_zero();
    torch::stable::parallel_for(0, count, 1, [&](int64_t b0, int64_t b1) {
        for (int64_t b = b0; b < b1; ++b) {
            blocks[size_t(b)].dense = true;
            if (sparse) blocks[size_t(b)] = sparse_block(a, h, b * block, rows_of(b), partials);
        }
    });
    add_sparse(a, blocks, block);
    std::optional<DenseBlocks<T>> dense;
    for (int64_t b = 0; b < count; ++b) {
        if (!blocks[size_t(b)].dense) continue;
        if (!dense) dense.emplace(a, std::min(block, a.batch));
        dense->add(h, b * block, rows_of(b), partials);
    }
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Gradients backward(Tensor grad, Tensor saved, Tensor x, Tensor w, std::optional<Tensor> s,
                   const Tensor& theta, const StageThresholds& h, int64_t mask) {
    Problem<T> a{};
    a.stages = saved.size(0);
    a.batch = x.size(0);
    a.n = x.size(1);
    a.p = w.size(0);
    const int64_t p = a.p;
    const bool need_s = s && wants(mask, 2), need_theta = wants(mask, 3);
    Tensor gx = empty_if(wants(mask, 0), grad, {a.batch, a.n});
    Tensor gw = empty_if(wants(mask, 1), grad, {p, a.n});
    Tensor gs = empty_if(need_s, grad, need_s ? shape_of(*s) : std::vector<int64_t>{});
    Tensor gtheta = empty_if(need_theta, theta, shape_of(theta));
    Tensor gb = empty_if(wants(mask, 4), grad, {p});
    for (Tensor* t : {&gw, &gs, &gb}) torch::stable::zero_(*t);
    if (a.batch == 0) {
        torch::stable::zero_(gtheta);
        return {gx, gw, gs, gtheta, gb};
    }
    const auto data_if = [](bool wanted, const Tensor& t) {
        return wanted ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };
    a.gx = data_if(wants(mask, 0), gx);
    a.gw = data_if(wants(mask, 1), gw);
    a.gs = data_if(need_s && a.stages > 1, gs);
    std::vector<double> bias(wants(mask, 4) ? p : 0);
    a.gb = wants(mask, 4) ? bias.data() : nullptr;
    a.needs_first = a.gx || a.gw || a.gb || need_theta;
    if (!a.needs_first && !a.gs) return {gx, gw, gs, gtheta, gb};
    if (a.gw) a.x = row_major_matrix<T>(x);
    if (a.gx) a.w = row_major_matrix<T>(w);
    if (a.stages - 1 > a.lowest()) {
        s = torch::stable::contiguous(*s);
        a.s = static_cast<const T*>(s->const_data_ptr());
    }
    if (s) a.s_stride = a.gs_stride = s->dim() == 3 ? p * p : 0;
    grad = torch::stable::contiguous(grad);
    saved = torch::stable::contiguous(saved);
    a.grad_z = static_cast<const T*>(grad.const_data_ptr());
    a.u = static_cast<const T*>(saved.const_data_ptr());
    const ThetaPartials partials(need_theta, a.stages, a.batch, p, h.per_entry());
    run_blocks(a, h, partials);
    if (a.gb) std::copy(bias.begin(), bias.end(), static_cast<T*>(gb.mutable_data_ptr()));
    if (!need_theta) return {gx, gw, gs, gtheta, gb};
    partials.reduce_into(h, a.stages, static_cast<T*>(gtheta.mutable_data_ptr()));
    return {gx, gw, gs, gtheta, gb};
}

}  // namespace

Gradients encode_l0_backward(Tensor grad_z, Tensor saved, Tensor x, Tensor W,
                             std::optional<Tensor> S, Tensor theta, double sigma, Threshold kind,
                             int64_t mask) {
    const char* op = "encode_l0_backward";
    STD_TORCH_CHECK(saved.dim() == 3, op, ": saved must be [K, B, p]");
    check_encoder(x, W, S, saved.size(0), op);
    STD_TORCH_CHECK(saved.size(1) == x.size(0) && saved.size(2) == W.size(0) &&
                        shape_of(grad_z) == (std::vector<int64_t>{x.size(0), W.size(0)}),
                    op, ": saved and grad_z do not fit x and W");
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const DType code = dtype_of(x, "x");
    STD_TORCH_CHECK(saved.scalar_type() == type && grad_z.scalar_type() == given, op,
                    ": saved must have the accumulation dtype, grad_z that of x");
    const StageThresholds h(op, theta, saved.size(0), W.size(0), code, sigma, kind);
    // S is read where some du is formed from the one above, x for dW, W for dx.
    const bool first = wants(mask, 0) || wants(mask, 1) || wants(mask, 3) || wants(mask, 4);
    if (S && saved.size(0) > (first ? 1 : 2)) S = cast(*S, type);
    if (wants(mask, 0)) W = cast(W, type);
    if (wants(mask, 1)) x = cast(x, type);
    const auto run = type == ScalarType::Double ? backward<double> : backward<float>;
    auto [gx, gw, gs, gtheta, gb] = run(cast(grad_z, type), saved, x, W, S, theta, h, mask);
    return {cast(gx, given), cast(gw, given), cast(gs, given), gtheta, cast(gb, given)};
}

}  // namespace deepl0::torch_ops
