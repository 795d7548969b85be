#include "iht.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "gather.h"
#include "kernel_table.h"
#include "select.h"
#include "sizes.h"
#include "top_m.h"

namespace deepl0 {
namespace DEEPL0_ISA {

extern const TopMKernels top_m_table;

namespace {

/// One workspace block.
template <class T>
struct Scratch {
    T* u;
    T* before;     // dense, all 0 between two uses
    int32_t* old;  // indices of the code before
    void* selection;

    Scratch(void* block, int64_t p, int64_t capacity)
        : u(static_cast<T*>(block)),
          before(u + round_up(p, 16)),
          old(reinterpret_cast<int32_t*>(before + round_up(p, 16))),
          selection(old + capacity) {
        memset(before, 0, size_t(p) * sizeof(T));
    }
};

DEEPL0_INLINE int64_t select_m(const float* u, int64_t p, int64_t m, int32_t* idx, float* v,
                               void* workspace) {
    select_top_m<false>(u, p, m, static_cast<int32_t*>(workspace), idx, v);
    return m;
}

DEEPL0_INLINE int64_t select_m(const double* u, int64_t p, int64_t m, int32_t* idx, double* v,
                               void* workspace) {
    int64_t* wide = static_cast<int64_t*>(workspace);
    top_m_table.top_m(DType::f64, u, p, p, m, false, v, wide, 0, 1, wide + m);
    for (int64_t j = 0; j < m; ++j) idx[j] = int32_t(wide[j]);
    return m;
}

/// The entries with !(|u| < threshold), 0 never among them.
template <class T>
DEEPL0_INLINE int64_t select_above(const T* u, int64_t p, T threshold, int32_t* idx, T* v) {
    int64_t n = 0, i = 0;
    if constexpr (sizeof(T) == 4) {
        int32_t bound;
        memcpy(&bound, &threshold, 4);
        const I32 lowest = broadcast(bound > 1 ? bound : int32_t(1));
        I32 at = iota();
        for (; i + kLanes <= p; i += kLanes) {
            const F32 x = load(u + i);
            const Mask kept = ge(key(x), lowest);
            compress(idx + n, kept, at);
            compress(v + n, kept, x);
            n += count(kept);
            at = add(at, broadcast(int32_t(kLanes)));
        }
    }
    for (; i < p; ++i) {
        idx[n] = int32_t(i);
        v[n] = u[i];
        n += !(std::fabs(u[i]) < threshold) && u[i] != T(0);
    }
    return n;
}

/// sum_j v_j (b_i + q_i), i = idx_j, in four interleaved parts.
template <class T>
DEEPL0_INLINE T dot_on_support(const T* v, const int32_t* idx, int64_t n, const T* b, const T* q) {
    T sum[4] = {};
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
        for (int l = 0; l < 4; ++l) sum[l] = fused(v[j + l], b[idx[j + l]] + q[idx[j + l]], sum[l]);
    }
    for (; j < n; ++j) sum[0] = fused(v[j], b[idx[j]] + q[idx[j]], sum[0]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <class T>
DEEPL0_INLINE T half_square(const T* x, int64_t n) {
    T sum[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; ++l) sum[l] += x[i + l] * x[i + l];
    }
    for (; i < n; ++i) sum[0] += x[i] * x[i];
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    }
    return sum[0] / 2;
}

/// Takes note of the objective of the code of row r; false where the row is not to go on.
template <class T>
DEEPL0_INLINE bool settle(const IhtRows<T>& s, int64_t r, T value) {
    const int64_t k = s.iterations[r];
    if (k == 0) s.first[r] = value;
    // Rounding grows with the terms that cancel, not with their difference.
    const T slack = 64 * std::numeric_limits<T>::epsilon();
    const T rise = k == 0 ? T(0) : value - s.objective[r];
    if (!(rise - slack * (s.half_xx[r] + std::fabs(s.objective[r])) <= 0) && k > 0) {
        s.status[r] = IhtStatus::rose;
        s.objective[r] = rise;
        return false;
    }
    s.objective[r] = value;
    if (s.history) s.history[k / kIhtBlock][k % kIhtBlock * s.history_ld + r] = value;
    if (s.status[r] == IhtStatus::last) s.status[r] = IhtStatus::done;
    return s.status[r] == IhtStatus::running && k < s.limit;
}

/// max(q, 0) in place, -0 made +0; NaN stays.
template <class T>
DEEPL0_NOINLINE void take_positive(T* q, int64_t p) {
    for (int64_t i = 0; i < p; ++i) q[i] = q[i] <= 0 ? T(0) : q[i];
}

/// The code of row r from q = mu D'(x - D a), which becomes q + a.
template <class T>
DEEPL0_INLINE void step(const IhtProblem<T>& f, const IhtRows<T>& s, int64_t r, T* q,
                        const Scratch<T>& w) {
    T* v = s.values + r * s.capacity;
    int32_t* idx = s.indices + r * s.capacity;
    const int64_t n = s.count[r], k = ++s.iterations[r];
    const bool last = k == f.max_iter, check = last || k % kIhtCheckEvery == 0;
    for (int64_t j = 0; j < n; ++j) q[idx[j]] += v[j];
    if (f.positive) take_positive(q, f.p);
    if (check) {
        for (int64_t j = 0; j < n; ++j) w.before[idx[j]] = v[j];
        memcpy(w.old, idx, size_t(n) * sizeof(int32_t));
    }
    const int64_t kept = f.m >= 0
                             ? select_m(static_cast<const T*>(q), f.p, f.m, idx, v, w.selection)
                             : select_above(static_cast<const T*>(q), f.p, f.threshold, idx, v);
    s.count[r] = int32_t(kept);
    if (!check) return;
    double moved = 0, size = 0;
    for (int64_t j = 0; j < kept; ++j) {
        const double now = double(v[j]), change = now - double(w.before[idx[j]]);
        size += now * now;
        moved += change * change;
        w.before[idx[j]] = 0;
    }
    for (int64_t j = 0; j < n; ++j) {
        const double left = double(w.before[w.old[j]]);
        moved += left * left;
        w.before[w.old[j]] = 0;
    }
    s.converged[r] = std::sqrt(moved) <= f.tol * std::sqrt(size);
    if (s.converged[r] || last) s.status[r] = IhtStatus::last;
}

template <class T>
DEEPL0_INLINE T objective(const IhtProblem<T>& f, const IhtRows<T>& s, int64_t r, const T* b,
                          const T* q) {
    const T dot =
        dot_on_support<T>(s.values + r * s.capacity, s.indices + r * s.capacity, s.count[r], b, q);
    const T fit = s.half_xx[r] - dot / (2 * f.step);
    return (fit < 0 ? T(0) : fit) + f.penalty * T(s.count[r]);
}

/// q on the support of a code only, where the objective reads it: the same chains of sums.
template <class T>
DEEPL0_INLINE void gather_on_support(T* q, const T* b, const T* gram, int64_t p, const T* v,
                                     const int32_t* idx, int64_t n) {
    constexpr int kAtOnce = 8;  // chains
    for (int64_t i = 0; i < n; i += kAtOnce) {
        const int some = int(n - i < kAtOnce ? n - i : kAtOnce);
        const T* columns[kAtOnce];
        T sum[kAtOnce];
        for (int l = 0; l < kAtOnce; ++l) {
            const int64_t at = idx[i + (l < some ? l : 0)];
            columns[l] = gram + at;
            sum[l] = b[at];
        }
        for (int64_t j = 0; j < n; ++j) {
            const int64_t row = int64_t(idx[j]) * p;
#pragma GCC unroll 8
            for (int l = 0; l < kAtOnce; ++l) sum[l] = fused(v[j], columns[l][row], sum[l]);
        }
        for (int l = 0; l < some; ++l) q[idx[i + l]] = sum[l];
    }
}

/// Settles row r if only its objective is missing.
template <class T>
DEEPL0_INLINE bool finished(const IhtProblem<T>& f, const IhtRows<T>& s, int64_t r, const T* b,
                            const T* gram, T* q) {
    const int64_t n = s.count[r];
    if (s.status[r] != IhtStatus::last || n * 8 > f.p) return false;
    const T* v = s.values + r * s.capacity;
    const int32_t* idx = s.indices + r * s.capacity;
    gather_on_support(q, b, gram, f.p, v, idx, n);
    settle(s, r, objective<T>(f, s, r, b, q));
    return true;
}

template <class T>
void finish_impl(const IhtProblem<T>& f, const IhtRows<T>& s, const int32_t* rows, int64_t n,
                 const T* b, const T* gram, void* workspace) {
    const Scratch<T> w(workspace, f.p, s.capacity);
    for (int64_t i = 0; i < n; ++i) finished(f, s, rows[i], b + rows[i] * f.p, gram, w.u);
}

template <class T>
void iterate_impl(const IhtProblem<T>& f, const IhtRows<T>& s, const int32_t* rows, int64_t n,
                  const T* b, const T* gram, int64_t most, void* workspace) {
    const int64_t p = f.p;
    const Scratch<T> w(workspace, p, s.capacity);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t r = rows[i];
        const T* base = b + r * p;
        const T* v = s.values + r * s.capacity;
        const int32_t* idx = s.indices + r * s.capacity;
        while (s.count[r] <= most) {
            if (finished(f, s, r, base, gram, w.u)) break;
            gather_sum(w.u, base, gram, p, v, idx, s.count[r], p);
            if (!settle(s, r, objective<T>(f, s, r, base, w.u))) break;
            step(f, s, r, w.u, w);
        }
    }
}

template <class T>
void gather_impl(const IhtRows<T>& s, const int32_t* rows, int64_t n, const T* base,
                 int64_t base_ld, const T* matrix, int64_t cols, T* out, int64_t out_ld) {
    constexpr int64_t kAhead = 4, kLine = 64 / int64_t(sizeof(T));
    for (int64_t i = 0; i < n; ++i) {
        const int64_t r = rows[i];
        if (i + kAhead < n) {
            const T* next = base + rows[i + kAhead] * base_ld;
            for (int64_t c = 0; c < cols; c += kLine) __builtin_prefetch(next + c, 0, 3);
        }
        const T* v = s.values + r * s.capacity;
        const int32_t* idx = s.indices + r * s.capacity;
        gather_sum(out + i * out_ld, base + r * base_ld, matrix, cols, v, idx, s.count[r], cols);
    }
}

template <class T>
void advance_impl(const IhtProblem<T>& f, const IhtRows<T>& s, const int32_t* rows, int64_t n,
                  const T* b, const T* residual, int64_t atoms, T* q, void* workspace) {
    const Scratch<T> w(workspace, f.p, s.capacity);
    for (int64_t i = 0; i < n; ++i, q += f.p) {
        const int64_t r = rows[i];
        const T value = residual
                            ? half_square(residual + i * atoms, atoms) + f.penalty * T(s.count[r])
                            : objective<T>(f, s, r, b + r * f.p, q);
        if (settle(s, r, value)) step(f, s, r, q, w);
    }
}

template <class T>
constexpr IhtKernels<T> kIht = {iterate_impl<T>, finish_impl<T>, gather_impl<T>, advance_impl<T>};

}  // namespace

extern const IhtKernels<float> iht_f32;
extern const IhtKernels<double> iht_f64;
const IhtKernels<float> iht_f32 = kIht<float>;
const IhtKernels<double> iht_f64 = kIht<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(IhtKernels, iht)

int64_t iht_capacity(int64_t p, int64_t m) {
    return round_up(m < 0 ? p : m, 16) + scalar::kSelectSlack;
}

template <class T>
int64_t iht_workspace(int64_t p, int64_t m) {
    const int64_t rows = 2 * round_up(p, 16) * int64_t(sizeof(T)) + 4 * iht_capacity(p, m);
    if (m < 0) return rows;
    if (sizeof(T) == 4) return rows + 4 * scalar::cut_scratch(p);
    return rows + 8 * m + int64_t(top_m_workspace_bytes(DType::f64, p, m));
}
template int64_t iht_workspace<float>(int64_t, int64_t);
template int64_t iht_workspace<double>(int64_t, int64_t);
#endif

}  // namespace deepl0
