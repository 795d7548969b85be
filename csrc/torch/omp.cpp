#include "core/omp.h"

#include <optional>
#include <tuple>

#include "torch/panels.h"

namespace deepl0::torch_ops {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kGramBytes = int64_t(1) << 30, kPanelBytes = int64_t(32) << 20;

/// Rows of a panel. It depends on the problem only: a product rounds by its number of rows, and
/// results shall not depend on the number of threads.
int64_t omp_panel(int64_t batch, int64_t row_bytes) {
    const int64_t fit = std::clamp<int64_t>(kPanelBytes / row_bytes, 16, 128);
    return std::clamp<int64_t>(batch / 16 / 16 * 16, 16, fit);
}

/// out [rows, p], ld apart, = a d, with zeros in the padding.
template <class T>
void correlate(T* out, int64_t ld, Matrix<const T> a, Matrix<const T> d) {
    mm<T>({out, a.rows, d.cols, ld, 1}, a, d);
    for (int64_t r = 0; r < a.rows; ++r) std::fill(out + r * ld + d.cols, out + (r + 1) * ld, T(0));
}

template <class T>
void pursue_gram(const OmpProblem<T>& problem, const OmpKernels<T>& kernels, Matrix<const T> x,
                 Matrix<const T> d, int64_t ld, OmpCodes<T> out) {
    const int64_t p = problem.p, block = 128, panel = omp_panel(x.rows, ld * int64_t(sizeof(T)));
    const Buffer<T> gram(p * ld);
    const auto in_panels = [](int64_t rows, int64_t panel, auto&& f) {
        torch::stable::parallel_for(0, (rows + panel - 1) / panel, 1, [&](int64_t b, int64_t e) {
            f(b * panel, std::min(rows, e * panel));
        });
    };
    in_panels(p, block, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += block)
            correlate(gram.get() + i * ld, ld, d.transposed().range(i, std::min(end, i + block)),
                      d);
    });
    in_panels(x.rows, panel, [&](int64_t begin, int64_t end) {
        const Buffer<T> alpha(panel * ld);
        const Buffer<char> workspace(omp_workspace<T>(p, problem.m));
        for (int64_t r = begin; r < end; r += panel) {
            const Matrix<const T> rows = x.range(r, std::min(end, r + panel));
            correlate(alpha.get(), ld, rows, d);
            kernels.gram(problem, rows.data, rows.row_stride, rows.rows, alpha.get(), gram.get(),
                         ld, out.from(r, problem.m), workspace.get());
        }
    });
}

template <class T>
void pursue_residual(const OmpProblem<T>& problem, const OmpKernels<T>& kernels, bool positive,
                     Matrix<const T> x, Matrix<const T> d, int64_t ld, OmpCodes<T> out) {
    const int64_t n = problem.n, m = problem.m;
    const int64_t panel = omp_panel(x.rows, (ld + (m + 1) * (n + m)) * int64_t(sizeof(T)));
    const int64_t panels = (x.rows + panel - 1) / panel;
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
        const Buffer<T> alpha(panel * ld), residual(panel * n), directions(panel * m * n);
        const Buffer<T> lower(panel * m * m), y(panel * m), squared(panel);
        const Buffer<int64_t> live(panel);
        const Buffer<int32_t> support(panel * m);
        const Buffer<int32_t> factor(positive ? 2 * panel : 0);
        const Buffer<T> scratch(positive ? omp_scratch(m) : 0);
        OmpPanel<T> state{residual.get(), live.get(),    directions.get(), lower.get(),
                          y.get(),        squared.get(), support.get()};
        if (positive) {
            state.inside = factor.get();
            state.waiting = state.inside + panel;
            state.scratch = scratch.get();
        }
        for (int64_t b = begin; b < end; ++b) {
            const Matrix<const T> rows = x.range(b * panel, std::min(x.rows, (b + 1) * panel));
            const OmpCodes<T> codes = out.from(b * panel, m);
            kernels.start(problem, rows.data, rows.row_stride, rows.rows, state, codes);
            int64_t count = rows.rows;
            for (int64_t k = 0; k < m && count > 0; ++k) {
                correlate(alpha.get(), ld, row_major<const T>(residual.get(), count, n), d);
                count = kernels.step(problem, k, count, alpha.get(), ld, d.data, d.row_stride,
                                     d.col_stride, state, codes);
            }
            kernels.finish(problem, rows.rows, state, codes);
        }
    });
}

template <class T>
Result pursue(Tensor x, Tensor d, int64_t m, double tol, bool positive) {
    const Matrix<const T> xm = row_major_matrix<T>(x), dm = matrix<T>(d);
    const OmpProblem<T> problem{dm.rows, dm.cols, m, T(tol)};
    const ScalarType type = x.scalar_type();
    Tensor values = fresh({xm.rows, m}, type), indices = fresh({xm.rows, m}, ScalarType::Long);
    Tensor count = fresh({xm.rows}, ScalarType::Long), objective = fresh({m + 1, xm.rows}, type);
    if (xm.rows > 0) {
        const OmpCodes<T> out{static_cast<T*>(values.mutable_data_ptr()),
                              static_cast<int64_t*>(indices.mutable_data_ptr()),
                              static_cast<int64_t*>(count.mutable_data_ptr()),
                              static_cast<T*>(objective.mutable_data_ptr()), xm.rows};
        const int64_t p = dm.cols, ld = (p + kOmpPad - 1) / kOmpPad * kOmpPad;
        const auto& kernels = positive ? omp_positive_kernels<T>() : omp_kernels<T>();
        const bool fits = p * ld * int64_t(sizeof(T)) <= kGramBytes;
        // The Gram matrix costs p products with D, the residual form m for each row.
        if (fits && xm.rows * m > p)
            pursue_gram(problem, kernels, xm, dm, ld, out);
        else
            pursue_residual(problem, kernels, positive, xm, dm, ld, out);
    }
    return {values, indices, count, objective};
}

}  // namespace

Result omp(Tensor x, Tensor D, int64_t m, double tol, bool positive) {
    STD_TORCH_CHECK(x.dim() == 2 && D.dim() == 2 && x.size(1) == D.size(0),
                    "omp: x [B, n] and D [n, p] do not fit");
    STD_TORCH_CHECK(m >= 1 && m <= std::min(D.size(0), D.size(1)), "omp: m must be in [1, ",
                    std::min(D.size(0), D.size(1)), "], got ", m);
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(
        type == D.scalar_type() && (type == ScalarType::Float || type == ScalarType::Double),
        "omp: x and D must both be float32 or float64");
    return type == ScalarType::Double ? pursue<double>(x, D, m, tol, positive)
                                      : pursue<float>(x, D, m, tol, positive);
}

}  // namespace deepl0::torch_ops
