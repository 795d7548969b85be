// Nonnegative orthogonal matching pursuit: the atom of largest positive correlation, then
// nonnegative least squares on all atoms chosen so far, by the active set of Lawson and Hanson from
// the one of the step before. The atoms whose coefficients are positive are in the factor, in which
// they are a plain pursuit's: as long as all of them are, nothing is computed that this would not.
//
// An atom that leaves takes a direction along. Rotations of the directions behind it (Givens) make
// the factor triangular again, and turn what the form keeps of each direction, v_k or q_k.
// Sources: Bruckstein, Elad, Zibulevsky 2008; Lawson and Hanson 1974; the rotations are those of
// Nguyen, Soussen, Idier, Djermoune 2019.
#include "kernel_table.h"
#include "omp_factor.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

/// (a, b) <- (c a + s b, c b - s a)
template <class T>
DEEPL0_INLINE void rotate(T& a, T& b, T c, T s) {
    const T turned = c * a + s * b;
    b = c * b - s * a;
    a = turned;
}

/// The atoms that a row has chosen: those in the factor, those with coefficient 0 that may come
/// back, and those that rounding or dependence bars from it; so they stand in `support`.
template <class T>
struct Chosen : Factor<T> {
    int64_t waiting, barred;
    T *z, *a, *c, *s;  // [m] each, of no use between two calls

    __attribute__((always_inline)) Chosen(const Factor<T>& f, int64_t waiting, int64_t barred,
                                          T* scratch)
        : Factor<T>(f),
          waiting(waiting),
          barred(barred),
          z(scratch),
          a(z + f.m),
          c(a + f.m),
          s(c + f.m) {}

    __attribute__((always_inline)) int64_t count() const { return this->k + waiting + barred; }

    /// Makes room in `support` for a new atom behind those of the factor.
    __attribute__((always_inline)) void make_room() {
        int32_t* end = this->support + this->k + waiting;
        if (barred > 0) end[barred] = end[0];
        if (waiting > 0) end[0] = this->support[this->k];
    }

    /// z: least squares on the first n atoms of the factor.
    __attribute__((always_inline)) void fit(int64_t n, T* z) const {
        memcpy(z, this->y, size_t(n) * sizeof(T));
        solve_factor<T>(*this, n, z);
    }

    /// Whether least squares on the factor, which is put into z, are positive.
    __attribute__((always_inline)) bool fits() const {
        fit(this->k, z);
        bool good = true;
        for (int64_t i = 0; i < this->k; ++i) good &= z[i] > 0;
        return good;
    }

    /// Atom t of the factor becomes one that waits. c, s: the rotations of the directions t and
    /// t + 1, t + 1 and t + 2, .., of which the last is dropped; y[k] is then its part of the
    /// signal.
    void remove(int64_t t) {
        T *lower = this->lower, *y = this->y;
        const int64_t m = this->m, last = this->k - 1;
        const int32_t atom = this->support[t];
        for (int64_t i = t; i < last; ++i) {
            T* w = lower + i * m;
            memcpy(w, w + m, size_t(i + 2) * sizeof(T));
            for (int64_t j = t; j < i; ++j) rotate(w[j], w[j + 1], c[j], s[j]);
            const T root = std::sqrt(w[i] * w[i] + w[i + 1] * w[i + 1]);
            c[i] = w[i] / root;
            s[i] = w[i + 1] / root;
            w[i] = root;
            rotate(y[i], y[i + 1], c[i], s[i]);
            this->support[i] = this->support[i + 1];
            a[i] = a[i + 1];
        }
        this->support[last] = atom;
        this->k = last;
        ++waiting;
    }

    /// The atom at place i of those that wait is barred.
    __attribute__((always_inline)) void bar(int64_t i) {
        --waiting;
        ++barred;
        std::swap(this->support[i], this->support[this->k + waiting]);
    }
};

/// Nonnegative least squares on all chosen atoms, after one has been added to the factor.
///
/// Form: correlation(f, atom), with what the factor leaves of the signal; add(f, atom), as
/// Factor::add; drop(f, t, atom), after f.remove(t); bar(atom).
template <class T, class Form>
DEEPL0_NOINLINE void settle(Chosen<T>& f, Form& form) {
    T *z = f.z, *a = f.a;
    f.fit(f.k - 1, a);
    a[f.k - 1] = 0;
    // Every atom that comes back lowers the objective; where rounding lets them come and go, so
    // many are enough.
    for (int64_t more = 2 * f.m;;) {
        if (f.fits()) {
            int64_t best = -1;
            T most = f.floor;
            for (int64_t i = f.k; i < f.k + f.waiting; ++i) {
                const T correlation = form.correlation(f, f.support[i]);
                if (correlation > most) best = i, most = correlation;
            }
            if (best < 0) return;
            const int32_t atom = f.support[best];
            std::swap(f.support[best], f.support[f.k]);
            if (more-- > 0 && form.add(f, atom)) {
                --f.waiting;
                memcpy(a, z, size_t(f.k - 1) * sizeof(T));
                a[f.k - 1] = 0;
            } else {
                form.bar(atom);
                f.bar(f.k);
            }
            continue;
        }
        // From a towards z until the first coefficients are 0. (NaN leaves, too.)
        const auto length = [&](int64_t i) { return a[i] > 0 ? a[i] / (a[i] - z[i]) : T(0); };
        T step = 1;
        for (int64_t i = 0; i < f.k; ++i)
            if (!(z[i] > 0) && length(i) < step) step = length(i);
        for (int64_t i = f.k - 1; i >= 0; --i) {
            if (z[i] > 0 || length(i) > step) {
                a[i] += step * (z[i] - a[i]);
                continue;
            }
            const int32_t atom = f.support[i];
            const bool at_once = !(a[i] > 0);  // it has just been added, by rounding alone
            f.remove(i);
            form.drop(f, i, atom);
            if (!at_once) continue;
            form.bar(atom);
            f.bar(f.k);
        }
    }
}

/// The gram form of omp.h: atoms in the factor, or barred, are NaN in alpha.
template <class T>
struct GramForm {
    const T* gram;
    int64_t ld;
    T *v, *alpha;

    __attribute__((always_inline)) T correlation(const Chosen<T>&, int64_t atom) const {
        return alpha[atom];
    }

    /// Adds the atom to the factor, not yet to alpha and v.
    __attribute__((always_inline)) bool include(Chosen<T>& f, int64_t atom) const {
        const T* column = column_of(v, f.m, atom);
        for (int64_t j = 0; j < f.k; ++j) f.row()[j] = column[j * kChunk<T>];
        if (!f.add(atom, alpha[atom])) return false;
        bar(atom);
        return true;
    }

    __attribute__((always_inline)) Peak<T> take(const Chosen<T>& f, int64_t atom) const {
        return project<true, T>(f, gram + atom * ld, v, alpha, ld);
    }

    bool add(Chosen<T>& f, int64_t atom) const {
        if (!include(f, atom)) return false;
        take(f, atom);
        return true;
    }

    void drop(const Chosen<T>& f, int64_t t, int64_t atom) const {
        alpha[atom] = 0;
        const Reals<T> back = f.y[f.k] - Reals<T>{};
        for (int64_t column = 0; column < ld; column += kWidth<T>) {
            T* row = column_of(v, f.m, column) + t * kChunk<T>;
            Reals<T> last = *reinterpret_cast<const Reals<T>*>(row);
            for (int64_t j = t; j < f.k; ++j, row += kChunk<T>) {
                Reals<T> next = *reinterpret_cast<const Reals<T>*>(row + kChunk<T>);
                const Reals<T> c = f.c[j] - Reals<T>{}, s = f.s[j] - Reals<T>{};
                *reinterpret_cast<Reals<T>*>(row) = c * last + s * next;
                last = c * next - s * last;
            }
            Reals<T>& a = *reinterpret_cast<Reals<T>*>(alpha + column);
            a = fused(last, back, Reals<T>(a));
        }
    }

    __attribute__((always_inline)) void bar(int64_t atom) const {
        alpha[atom] = std::numeric_limits<T>::quiet_NaN();
    }
};

template <class T>
void gram_impl(const OmpProblem<T>& problem, const T* x, int64_t ldx, int64_t rows, T* alpha,
               const T* gram, int64_t ld, OmpCodes<T> out, void* workspace) {
    const int64_t m = problem.m;
    const GramScratch<T> w(workspace, ld, m);
    for (int64_t r = 0; r < rows; ++r, x += ldx, alpha += ld) {
        const OmpCodes<T> code = out.from(r, m);
        const T squared = dot(x, x, problem.n);
        Chosen<T> f({w.lower, w.y, w.support, problem, 0, squared}, 0, 0, w.more);
        GramForm<T> form{gram, ld, w.v, alpha};
        code.objective[0] = f.value();
        Peak<T> peak = peak_of<true>(static_cast<const T*>(alpha), ld);
        while (peak.value > f.floor) {
            f.make_room();
            if (!form.include(f, peak.atom)) break;
            const bool plain = f.waiting == 0 && f.fits(), last = f.count() == m;
            if (!plain || !last) peak = form.take(f, peak.atom);
            if (!plain) {
                settle(f, form);
                peak = peak_of<true>(static_cast<const T*>(alpha), ld);
            }
            code.objective[f.count() * code.stride] = f.value();
            if (last) break;
        }
        write_code(f, f.count(), code);
    }
}

/// The residual form of omp.h, of one row.
template <class T>
struct ResidualForm {
    int64_t n;
    const T* d;
    int64_t row_stride, col_stride;
    T *directions, *residual;

    /// The atom, where the next direction will stand.
    __attribute__((always_inline)) T* load(const Chosen<T>& f, int64_t atom) const {
        T* q = directions + f.k * n;
        for (int64_t i = 0; i < n; ++i) q[i] = d[i * row_stride + atom * col_stride];
        return q;
    }

    T correlation(const Chosen<T>& f, int64_t atom) const {
        return dot(load(f, atom), residual, n);
    }

    __attribute__((always_inline)) bool include(Chosen<T>& f, int64_t atom, T alpha) const {
        T* q = load(f, atom);
        orthogonalise(f, directions, q, n);
        if (!f.add(atom, alpha)) return false;
        const T scale = T(1) / f.lower[(f.k - 1) * (f.m + 1)], y = f.y[f.k - 1];
        for (int64_t i = 0; i < n; ++i) {
            q[i] *= scale;
            residual[i] = fused(q[i], -y, residual[i]);
        }
        return true;
    }

    bool add(Chosen<T>& f, int64_t atom) const { return include(f, atom, correlation(f, atom)); }

    void drop(const Chosen<T>& f, int64_t t, int64_t) const {
        T* q = directions + t * n;
        for (int64_t j = t; j < f.k; ++j, q += n)
            for (int64_t i = 0; i < n; ++i) rotate(q[i], q[n + i], f.c[j], f.s[j]);
        for (int64_t i = 0; i < n; ++i) residual[i] = fused(q[i], f.y[f.k], residual[i]);
    }

    void bar(int64_t) const {}
};

template <class T>
int64_t step_impl(const OmpProblem<T>& problem, int64_t k, int64_t live, T* alpha, int64_t ld,
                  const T* d, int64_t row_stride, int64_t col_stride, OmpPanel<T> panel,
                  OmpCodes<T> out) {
    const int64_t n = problem.n, m = problem.m;
    int64_t slots = 0;
    for (int64_t s = 0; s < live; ++s, alpha += ld) {
        const int64_t row = panel.live[s], inside = panel.inside[row];
        const int64_t waiting = panel.waiting[row];
        Chosen<T> f(factor_of(problem, panel, row, inside), waiting, k - inside - waiting,
                    panel.scratch);
        for (int64_t j = 0; j < k; ++j) alpha[f.support[j]] = std::numeric_limits<T>::quiet_NaN();
        const Peak<T> peak = peak_of<true>(static_cast<const T*>(alpha), ld);
        if (!(peak.value > f.floor)) continue;
        T* residual = panel.residual + slots * n;
        if (slots < s) memcpy(residual, panel.residual + s * n, size_t(n) * sizeof(T));
        T* directions = panel.directions + row * m * n;
        ResidualForm<T> form{n, d, row_stride, col_stride, directions, residual};
        f.make_room();
        if (!form.include(f, peak.atom, alpha[peak.atom])) continue;
        if (f.waiting > 0 || !f.fits()) settle(f, form);
        panel.inside[row] = int32_t(f.k);
        panel.waiting[row] = int32_t(f.waiting);
        out.objective[(k + 1) * out.stride + row] = f.value();
        out.count[row] = k + 1;
        panel.live[slots++] = row;
    }
    return slots;
}

template <class T>
void finish_impl(const OmpProblem<T>& problem, int64_t rows, OmpPanel<T> panel, OmpCodes<T> out) {
    for (int64_t r = 0; r < rows; ++r) {
        Factor<T> f = factor_of(problem, panel, r, panel.inside[r]);
        write_code(f, out.count[r], out.from(r, problem.m));
    }
}

template <class T>
constexpr OmpKernels<T> kOmp = {gram_impl<T>, start_impl<T>, step_impl<T>, finish_impl<T>};

}  // namespace

extern const OmpKernels<float> omp_positive_f32;
extern const OmpKernels<double> omp_positive_f64;
const OmpKernels<float> omp_positive_f32 = kOmp<float>;
const OmpKernels<double> omp_positive_f64 = kOmp<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(OmpKernels, omp_positive)
#endif

}  // namespace deepl0
