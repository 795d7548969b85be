// What the forms of orthogonal matching pursuit share: the peak of the correlations, the Cholesky
// factor of the chosen atoms, the rows v_k of omp.h. For files that are compiled once per ISA
// level.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "gather.h"
#include "omp.h"
#include "sizes.h"

namespace deepl0::DEEPL0_ISA {

template <class T>
using Lane = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <class T>
using Reals = typename Vector<T>::type;
template <class T>
using Lanes = typename Vector<Lane<T>>::type;

template <class T>
constexpr int64_t kWidth = kVectorBytes / int64_t(sizeof(T));
/// Columns of the v_k that are updated together, in registers.
template <class T>
constexpr int64_t kChunk = kAccumulators * kWidth<T>;

template <class T>
DEEPL0_INLINE Reals<T> magnitude(Reals<T> v) {
    return (Reals<T>)((Lanes<T>)v & std::numeric_limits<Lane<T>>::max());
}

/// The largest |alpha| (alpha, where codes are nonnegative) of each lane and where it was first
/// seen. NaN marks atoms that are taken: it survives every update and wins no comparison.
template <bool Positive, class T>
struct Peaks {
    Reals<T> best = Reals<T>{} - T(1);
    Lanes<T> at = Lanes<T>{};

    __attribute__((always_inline)) void add(Reals<T> alpha, Lanes<T> columns) {
        const Reals<T> a = Positive ? alpha : magnitude<T>(alpha);
        const auto larger = a > best;
        best = larger ? a : best;
        at = larger ? columns : at;
    }
};

template <class T>
struct Peak {
    T value;
    int64_t atom;
};

/// The largest of all lanes, ties to the lowest index.
template <bool Positive, class T>
DEEPL0_INLINE Peak<T> largest(const Peaks<Positive, T>& peaks) {
    constexpr int kLanesOf = int(kWidth<T>);
    alignas(64) T value[kLanesOf];
    alignas(64) Lane<T> at[kLanesOf];
    memcpy(value, &peaks.best, sizeof value);
    memcpy(at, &peaks.at, sizeof at);
    for (int half = kLanesOf / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            const bool other =
                value[i + half] > value[i] || (value[i + half] == value[i] && at[i + half] < at[i]);
            value[i] = other ? value[i + half] : value[i];
            at[i] = other ? at[i + half] : at[i];
        }
    }
    return {value[0], at[0]};
}

template <class T>
DEEPL0_INLINE Lanes<T> count_up() {
    Lanes<T> lanes;
    for (int i = 0; i < int(kWidth<T>); ++i) lanes[i] = i;
    return lanes;
}

template <bool Positive, class T>
DEEPL0_INLINE Peak<T> peak_of(const T* alpha, int64_t ld) {
    Peaks<Positive, T> peaks;
    const Lanes<T> lanes = count_up<T>();
    for (int64_t c = 0; c < ld; c += kWidth<T>)
        peaks.add(*reinterpret_cast<const Reals<T>*>(alpha + c), lanes + Lane<T>(c));
    return largest(peaks);
}

/// The factorisation L L' of the Gram matrix of a row's support, and L y = D'x on the support.
template <class T>
struct Factor {
    T* lower;  // row k: w of atom k, then its pivot's root
    T* y;
    int32_t* support;
    int64_t m, k;
    T squared, floor;

    /// ||x||^2 is squared.
    __attribute__((always_inline)) Factor(T* lower, T* y, int32_t* support,
                                          const OmpProblem<T>& problem, int64_t k, T squared)
        : lower(lower),
          y(y),
          support(support),
          m(problem.m),
          k(k),
          squared(squared),
          floor(problem.tol * std::sqrt(squared)) {}

    __attribute__((always_inline)) T* row() const { return lower + k * m; }

    /// Adds the atom, whose correlation with the residual is alpha and whose w is in row(), unless
    /// it depends on the support.
    __attribute__((always_inline)) bool add(int64_t atom, T alpha) {
        T* w = row();
        const T pivot = 1 - dot(w, w, k);
        if (!(pivot > T(100) * std::numeric_limits<T>::epsilon())) return false;
        w[k] = std::sqrt(pivot);
        y[k] = alpha / w[k];
        support[k++] = int32_t(atom);
        return true;
    }

    /// 1/2 ||residual||^2.
    __attribute__((always_inline)) T value() const {
        const T taken = dot(y, y, k);
        return squared > taken ? T(0.5) * (squared - taken) : T(0);
    }
};

/// y [k], overwritten: the z of L' z = y, L the first k rows of f. Not inline: the same bits of the
/// same y, wherever it is called.
template <class T>
DEEPL0_NOINLINE void solve_factor(const Factor<T>& f, int64_t k, T* __restrict y) {
    for (int64_t i = k - 1; i >= 0; --i) {
        const T* __restrict w = f.lower + i * f.m;
        const T value = y[i] / w[i];
        for (int64_t j = 0; j < i; ++j) y[j] -= value * w[j];
        y[i] = value;
    }
}

/// Solves for the values (y is overwritten) and writes the code of one row whose pursuit chose
/// `chosen` atoms: ascending, with zeros at the lowest free indices where the factor has fewer
/// than m.
template <class T>
DEEPL0_NOINLINE void write_code(Factor<T>& f, int64_t chosen, OmpCodes<T> out) {
    solve_factor(f, f.k, f.y);
    for (int64_t i = 1; i < f.k; ++i) {
        const int32_t atom = f.support[i];
        const T value = f.y[i];
        int64_t j = i;
        for (; j > 0 && f.support[j - 1] > atom; --j) {
            f.support[j] = f.support[j - 1];
            f.y[j] = f.y[j - 1];
        }
        f.support[j] = atom;
        f.y[j] = value;
    }
    int64_t next = 0, zeros = f.m - f.k;
    for (int64_t free = 0, i = 0; i < f.m; ++i, ++free) {
        const bool own = next < f.k && (zeros == 0 || f.support[next] == free);
        out.indices[i] = own ? f.support[next] : free;
        out.values[i] = own ? f.y[next++] : T(0);
        zeros -= !own;
    }
    *out.count = chosen;
    for (int64_t k = chosen; k < f.m; ++k)
        out.objective[(k + 1) * out.stride] = out.objective[chosen * out.stride];
}

/// N vectors of v_k and of the correlations: v = (g - sum_j w_j v_j) / root, alpha -= y v.
template <int N, bool Positive, class T>
DEEPL0_INLINE void update(const T* g, const T* before, const T* w, int64_t k, T* v, T y, T* alpha,
                          int64_t column, Peaks<Positive, T>& peaks) {
    Reals<T> acc[N];
    for (int i = 0; i < N; ++i) acc[i] = reinterpret_cast<const Reals<T>*>(g)[i];
    for (int64_t j = 0; j < k; ++j) {
        const Reals<T>* row = reinterpret_cast<const Reals<T>*>(before + j * kChunk<T>);
        const Reals<T> c = Reals<T>{} - w[j];
        for (int i = 0; i < N; ++i) acc[i] = fused(Reals<T>(row[i]), c, acc[i]);
    }
    const Reals<T> scale = T(1) / w[k] - Reals<T>{}, back = Reals<T>{} - y;
    const Lanes<T> lanes = count_up<T>();
    for (int i = 0; i < N; ++i) {
        acc[i] *= scale;
        reinterpret_cast<Reals<T>*>(v)[i] = acc[i];
        Reals<T>& a = reinterpret_cast<Reals<T>*>(alpha)[i];
        a = fused(acc[i], back, Reals<T>(a));
        peaks.add(a, lanes + Lane<T>(column + i * kWidth<T>));
    }
}

/// Column `column` of the v_j; v is stored chunk by chunk, so that an update streams through it.
template <class T>
DEEPL0_INLINE T* column_of(T* v, int64_t m, int64_t column) {
    return v + column / kChunk<T> * kChunk<T> * m + column % kChunk<T>;
}

/// Takes the last atom of the factor into v and alpha; the next peak.
template <bool Positive, class T>
DEEPL0_NOINLINE Peak<T> project(const Factor<T>& f, const T* g, T* v, T* alpha, int64_t ld) {
    constexpr int64_t W = kWidth<T>, C = kChunk<T>;
    const int64_t k = f.k - 1;
    const T *w = f.lower + k * f.m, y = f.y[k];
    Peaks<Positive, T> peaks;
    int64_t c = 0;
    for (; c + C <= ld; c += C) {
        T* chunk = v + c * f.m;
        update<kAccumulators>(g + c, chunk, w, k, chunk + k * C, y, alpha + c, c, peaks);
    }
    T* chunk = v + c * f.m;
    for (; c + 4 * W <= ld; c += 4 * W, chunk += 4 * W)
        update<4>(g + c, chunk, w, k, chunk + k * C, y, alpha + c, c, peaks);
    for (; c < ld; c += W, chunk += W)
        update<1>(g + c, chunk, w, k, chunk + k * C, y, alpha + c, c, peaks);
    return largest(peaks);
}

/// The parts of the workspace of the gram form, and what is left of it.
template <class T>
struct GramScratch {
    T *v, *lower, *y, *more;
    int32_t* support;

    __attribute__((always_inline)) GramScratch(void* block, int64_t ld, int64_t m)
        : v(static_cast<T*>(block)),
          lower(v + round_up(ld, kChunk<T>) * m),
          y(lower + round_up(m * m, 16)),
          more(y + round_up(m, 16)),
          support(reinterpret_cast<int32_t*>(more + 4 * round_up(m, 16))) {}
};

template <class T>
DEEPL0_INLINE Factor<T> factor_of(const OmpProblem<T>& problem, const OmpPanel<T>& panel,
                                  int64_t row, int64_t k) {
    const int64_t m = problem.m;
    return {panel.lower + row * m * m, panel.y + row * m, panel.support + row * m, problem, k,
            panel.squared[row]};
}

/// q [n], an atom, less its parts w along the directions of the factor: modified Gram-Schmidt, w
/// and q in one sweep. w goes into f.row().
template <class T>
DEEPL0_INLINE void orthogonalise(const Factor<T>& f, const T* directions, T* q, int64_t n) {
    T* w = f.row();
    for (int64_t j = 0; j < f.k; ++j) {
        const T* qj = directions + j * n;
        w[j] = dot(q, qj, n);
        for (int64_t i = 0; i < n; ++i) q[i] = fused(qj[i], -w[j], q[i]);
    }
}

template <class T>
DEEPL0_NOINLINE void start_impl(const OmpProblem<T>& problem, const T* x, int64_t ldx, int64_t rows,
                                OmpPanel<T> panel, OmpCodes<T> out) {
    const int64_t n = problem.n;
    for (int64_t r = 0; r < rows; ++r, x += ldx) {
        memcpy(panel.residual + r * n, x, size_t(n) * sizeof(T));
        panel.live[r] = r;
        panel.squared[r] = dot(x, x, n);
        out.objective[r] = T(0.5) * panel.squared[r];
        out.count[r] = 0;
        if (panel.inside) panel.inside[r] = panel.waiting[r] = 0;
    }
}

}  // namespace deepl0::DEEPL0_ISA
