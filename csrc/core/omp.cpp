#include "omp.h"

#include "kernel_table.h"
#include "omp_factor.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

template <class T>
void gram_impl(const OmpProblem<T>& problem, const T* x, int64_t ldx, int64_t rows, T* alpha,
               const T* gram, int64_t ld, OmpCodes<T> out, void* workspace) {
    const int64_t m = problem.m;
    const GramScratch<T> w(workspace, ld, m);
    for (int64_t r = 0; r < rows; ++r, x += ldx, alpha += ld) {
        const OmpCodes<T> code = out.from(r, m);
        Factor<T> f(w.lower, w.y, w.support, problem, 0, dot(x, x, problem.n));
        code.objective[0] = f.value();
        Peak<T> peak = peak_of<false>(static_cast<const T*>(alpha), ld);
        while (peak.value > f.floor) {
            const T* column = column_of(w.v, m, peak.atom);
            for (int64_t j = 0; j < f.k; ++j) f.row()[j] = column[j * kChunk<T>];
            if (!f.add(peak.atom, alpha[peak.atom])) break;
            code.objective[f.k * code.stride] = f.value();
            if (f.k == m) break;
            alpha[peak.atom] = std::numeric_limits<T>::quiet_NaN();
            peak = project<false>(f, gram + peak.atom * ld, w.v, alpha, ld);
        }
        write_code(f, f.k, code);
    }
}

template <class T>
int64_t step_impl(const OmpProblem<T>& problem, int64_t k, int64_t live, T* alpha, int64_t ld,
                  const T* d, int64_t row_stride, int64_t col_stride, OmpPanel<T> panel,
                  OmpCodes<T> out) {
    const int64_t n = problem.n, m = problem.m;
    int64_t slots = 0;
    for (int64_t s = 0; s < live; ++s, alpha += ld) {
        const int64_t row = panel.live[s];
        Factor<T> f = factor_of(problem, panel, row, k);
        for (int64_t j = 0; j < k; ++j) alpha[f.support[j]] = std::numeric_limits<T>::quiet_NaN();
        const Peak<T> peak = peak_of<false>(static_cast<const T*>(alpha), ld);
        if (!(peak.value > f.floor)) continue;
        T *before = panel.directions + row * m * n, *q = before + k * n;
        const T* w = f.row();
        for (int64_t i = 0; i < n; ++i) q[i] = d[i * row_stride + peak.atom * col_stride];
        orthogonalise(f, before, q, n);
        if (!f.add(peak.atom, alpha[peak.atom])) continue;
        out.objective[f.k * out.stride + row] = f.value();
        out.count[row] = f.k;
        const T scale = T(1) / w[k], y = f.y[k];
        const T* old = panel.residual + s * n;
        T* residual = panel.residual + slots * n;
        for (int64_t i = 0; i < n; ++i) {
            q[i] *= scale;
            residual[i] = fused(q[i], -y, old[i]);
        }
        panel.live[slots++] = row;
    }
    return slots;
}

template <class T>
void finish_impl(const OmpProblem<T>& problem, int64_t rows, OmpPanel<T> panel, OmpCodes<T> out) {
    for (int64_t r = 0; r < rows; ++r) {
        Factor<T> f = factor_of(problem, panel, r, out.count[r]);
        write_code(f, f.k, out.from(r, problem.m));
    }
}

template <class T>
constexpr OmpKernels<T> kOmp = {gram_impl<T>, start_impl<T>, step_impl<T>, finish_impl<T>};

}  // namespace

extern const OmpKernels<float> omp_f32;
extern const OmpKernels<double> omp_f64;
const OmpKernels<float> omp_f32 = kOmp<float>;
const OmpKernels<double> omp_f64 = kOmp<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(OmpKernels, omp)

template <class T>
int64_t omp_workspace(int64_t p, int64_t m) {
    constexpr int64_t kWidest = 1024 / int64_t(sizeof(T));  // columns of a chunk at any level
    const int64_t v = round_up(p, kWidest) * m;
    return (v + round_up(m * m, 16) + 6 * round_up(m, 16)) * int64_t(sizeof(T));
}
template int64_t omp_workspace<float>(int64_t, int64_t);
template int64_t omp_workspace<double>(int64_t, int64_t);
#endif

}  // namespace deepl0
