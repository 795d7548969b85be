#include "fista.h"

#include <algorithm>
#include <cmath>

#include "gather.h"
#include "kernel_table.h"
#include "nonzeros.h"
#include "simd.h"
#include "sizes.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

DEEPL0_INLINE int64_t padded(int64_t p) { return round_up(p, 16) + 16; }

/// One workspace block.
template <class T>
struct FistaScratch {
    T* q;
    T* values;
    int32_t* indices;

    FistaScratch(void* block, int64_t p)
        : q(static_cast<T*>(block)),
          values(q + padded(p)),
          indices(reinterpret_cast<int32_t*>(values + padded(p))) {}
};

/// Units that are worked on at once: a vector of the level, or one where BYTES = 0. count: what
/// comparisons are added up in.
template <class T, int BYTES>
struct Units {
    using type = typename Vector<T, BYTES>::type;
    using count = decltype(type{} == type{});
};
template <class T>
struct Units<T, 0> {
    using type = T;
    using count = int64_t;
};

/// Sums over the units, in the lanes of a vector or in one number.
template <class T, int BYTES>
struct Sums {
    typename Units<T, BYTES>::type uphill{}, moved{}, size{};
    typename Units<T, BYTES>::count zeros{};
};

template <bool Positive, class T, int BYTES>
DEEPL0_INLINE void step_units(T* before, const T* code, const T* q, T* slope, T momentum,
                              T threshold, Sums<T, BYTES>& sums) {
    using V = typename Units<T, BYTES>::type;
    const V a = *reinterpret_cast<const V*>(code), old = *reinterpret_cast<const V*>(before);
    const V now = *reinterpret_cast<const V*>(q), last = *reinterpret_cast<const V*>(slope);
    const V w = momentum - V{}, high = threshold - V{};
    const V y = fused(w, V(a - old), a);
    const V u = y + fused(w, V(now - last), now);
    // NaN stays NaN.
    V next;
    if constexpr (Positive) {
        const V above = u - high;
        next = above < V{} ? V{} : above;
    } else {  // u - clamp(u): exact 0 inside
        const V low = V{} - high, clipped = u > high ? high : u;
        next = u - (clipped < low ? low : clipped);
    }
    const V change = next - a;
    *reinterpret_cast<V*>(slope) = now;
    *reinterpret_cast<V*>(before) = next;
    sums.uphill = fused(V(y - next), change, sums.uphill);
    sums.moved = fused(change, change, sums.moved);
    sums.size = fused(next, next, sums.size);
    sums.zeros = sums.zeros + (next == V{});
}

/// The next code of row r from its q, in the place of the code before.
template <bool Positive, class T>
DEEPL0_INLINE void step_row(const FistaProblem<T>& f, const FistaRows<T>& s, int64_t r,
                            const T* q) {
    constexpr int64_t W = kVectorBytes / int64_t(sizeof(T));
    const int64_t p = f.p, k = s.iterations[r]++;
    const T* code = s.codes[k % 2] + r * p;
    T *before = s.codes[(k + 1) % 2] + r * p, *slope = s.slopes + r * p;
    const T momentum = s.momentum[r];
    const T threshold = std::max(f.threshold, T(kFistaFall) * s.threshold[r]);
    s.threshold[r] = threshold;
    Sums<T, kVectorBytes> lanes;
    Sums<T, 0> tail;
    int64_t i = 0;
    for (; i + W <= p; i += W)
        step_units<Positive, T, kVectorBytes>(before + i, code + i, q + i, slope + i, momentum,
                                              threshold, lanes);
    for (; i < p; ++i)
        step_units<Positive, T, 0>(before + i, code + i, q + i, slope + i, momentum, threshold,
                                   tail);
    int64_t zeros = int64_t(tail.zeros);
    for (int64_t l = 0; l < W; ++l) zeros -= int64_t(lanes.zeros[l]);  // a comparison gives -1
    s.count[r] = int32_t(p - zeros);

    const bool restart = sum_of_lanes<T, kVectorBytes>(lanes.uphill) + tail.uphill > 0;
    const T t = restart ? T(1) : s.t[r], next = (1 + std::sqrt(1 + 4 * t * t)) / 2;
    s.momentum[r] = restart ? T(0) : (t - 1) / next;
    s.t[r] = next;

    const bool last = k + 1 == f.max_iter;
    if (!last && (k + 1) % kIhtCheckEvery != 0) return;
    const T moved = sum_of_lanes<T, kVectorBytes>(lanes.moved) + tail.moved;
    const T size = sum_of_lanes<T, kVectorBytes>(lanes.size) + tail.size;
    s.converged[r] =
        threshold == f.threshold && std::sqrt(double(moved)) <= f.tol * std::sqrt(double(size));
    if (s.converged[r] || last) s.status[r] = IhtStatus::last;
}

template <class T>
DEEPL0_INLINE void step(const FistaProblem<T>& f, const FistaRows<T>& s, int64_t r, const T* q) {
    f.positive ? step_row<true>(f, s, r, q) : step_row<false>(f, s, r, q);
}

template <class T, int BYTES>
DEEPL0_INLINE void objective_units(const T* code, const T* b, const T* q,
                                   typename Units<T, BYTES>::type& dot,
                                   typename Units<T, BYTES>::type& size) {
    using V = typename Units<T, BYTES>::type;
    const V a = *reinterpret_cast<const V*>(code);
    dot = fused(a, V(*reinterpret_cast<const V*>(b) + *reinterpret_cast<const V*>(q)), dot);
    size += a < V{} ? V(-a) : a;
}

template <class T>
DEEPL0_INLINE T objective(const FistaProblem<T>& f, const FistaRows<T>& s, int64_t r, const T* b,
                          const T* q) {
    using V = typename Vector<T>::type;
    constexpr int64_t W = kVectorBytes / int64_t(sizeof(T));
    const T* code = s.codes[s.iterations[r] % 2] + r * f.p;
    V dots{}, sizes{};
    T dot{}, size{};
    int64_t i = 0;
    for (; i + W <= f.p; i += W)
        objective_units<T, kVectorBytes>(code + i, b + i, q + i, dots, sizes);
    for (; i < f.p; ++i) objective_units<T, 0>(code + i, b + i, q + i, dot, size);
    dot += sum_of_lanes<T, kVectorBytes>(dots);
    size += sum_of_lanes<T, kVectorBytes>(sizes);
    const T fit = s.half_xx[r] - dot / (2 * f.step);
    return (fit < 0 ? T(0) : fit) + f.lam * size;
}

/// Takes note of the objective where it is wanted; false where the row is not to go on.
template <class T>
DEEPL0_INLINE bool settle(const FistaProblem<T>& f, const FistaRows<T>& s, int64_t r, const T* b,
                          const T* q) {
    const int64_t k = s.iterations[r];
    const bool last = s.status[r] == IhtStatus::last, first = k == 0 && s.first;
    if (s.history || last || first) {
        const T value = objective(f, s, r, b, q);
        if (s.history) s.history[k / kIhtBlock][k % kIhtBlock * s.history_ld + r] = value;
        if (first) s.first[r] = value;
        s.objective[r] = value;
    }
    if (last) s.status[r] = IhtStatus::done;
    return !last && k < s.limit;
}

/// q += b
template <class T>
DEEPL0_INLINE void add_row(T* q, const T* b, int64_t p) {
    for (int64_t i = 0; i < p; ++i) q[i] += b[i];
}

template <class T>
void advance_impl(const FistaProblem<T>& f, const FistaRows<T>& s, const int32_t* rows, int64_t n,
                  const T* b, T* q, bool add_b) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t r = rows[i];
        const T* base = b + r * f.p;
        if (q && add_b) add_row(q + i * f.p, base, f.p);
        const T* from = q ? q + i * f.p : base;
        if (settle(f, s, r, base, from)) step(f, s, r, from);
    }
}

template <class T>
void iterate_impl(const FistaProblem<T>& f, const FistaRows<T>& s, const int32_t* rows, int64_t n,
                  const T* b, const T* gram, int64_t most, void* workspace) {
    const FistaScratch<T> w(workspace, f.p);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t r = rows[i];
        const T* base = b + r * f.p;
        while (s.count[r] <= most) {
            const T* code = s.codes[s.iterations[r] % 2] + r * f.p;
            const int64_t used = nonzeros(code, f.p, w.indices, w.values);
            gather_sum(w.q, base, gram, f.p, w.values, w.indices, used, f.p);
            if (!settle(f, s, r, base, static_cast<const T*>(w.q))) break;
            step(f, s, r, static_cast<const T*>(w.q));
        }
    }
}

template <class T>
void residual_impl(const FistaProblem<T>& f, const FistaRows<T>& s, const int32_t* rows, int64_t n,
                   const T* x, int64_t ldx, const T* atoms, int64_t cols, T* out, void* workspace) {
    const FistaScratch<T> w(workspace, f.p);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t r = rows[i];
        const T* code = s.codes[s.iterations[r] % 2] + r * f.p;
        const int64_t used = nonzeros(code, f.p, w.indices, w.values);
        gather_sum(out + i * cols, x + r * ldx, atoms, cols, w.values, w.indices, used, cols);
    }
}

template <class T>
constexpr FistaKernels<T> kFista = {advance_impl<T>, iterate_impl<T>, residual_impl<T>};

}  // namespace

extern const FistaKernels<float> fista_f32;
extern const FistaKernels<double> fista_f64;
const FistaKernels<float> fista_f32 = kFista<float>;
const FistaKernels<double> fista_f64 = kFista<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(FistaKernels, fista)

template <class T>
int64_t fista_workspace(int64_t p) {
    return scalar::padded(p) * int64_t(2 * sizeof(T) + sizeof(int32_t));
}
template int64_t fista_workspace<float>(int64_t);
template int64_t fista_workspace<double>(int64_t);
#endif

}  // namespace deepl0
