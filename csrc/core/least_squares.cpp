#include "least_squares.h"

#include <cmath>
#include <limits>

#include "gather.h"
#include "kernel_table.h"
#include "sizes.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

using V = Vector<double>::type;
/// Lanes; the rows of a panel, and the columns that are factored together.
constexpr int W = kVectorBytes / int(sizeof(double));
/// Panels whose entries are formed together: enough sums to hide the latency of the fma.
constexpr int kPanels = W >= 4 ? 2 : 4;

DEEPL0_INLINE V load(const double* at) { return *reinterpret_cast<const V*>(at); }
DEEPL0_INLINE void store(double* at, V v) { *reinterpret_cast<V*>(at) = v; }
DEEPL0_INLINE V all(double x) { return x - V{}; }

/// The atoms of a row without the places that have none, and what is found of them.
struct Row {
    int64_t n;             // atoms
    const int64_t* atom;   // [n]
    const int64_t* place;  // [n], ascending
    const double* right;   // [n]
    double* z;             // [n], results
};

/// L in panels of W rows. Panel i holds its columns [0, (i + 1) W) one after the other, W numbers
/// each; row n, the last, is that of the right side. What stands above the diagonal is not read.
struct Panels {
    double* memory;

    static constexpr int64_t start(int64_t panel) { return panel * (panel + 1) / 2 * W * W; }
    double* of(int64_t panel) const { return memory + start(panel); }
    double* column(int64_t panel, int64_t k) const { return of(panel) + k * W; }
};

/// The rows n of G[S, S] and the right side.
DEEPL0_INLINE void gather(const LeastSquares& f, const Row& row, Panels l) {
    const int64_t n = row.n, full = n / W, rest = n % W;
    for (int64_t k = 0; k < n; ++k) {
        const double* g = f.gram + row.atom[k] * f.ld;
        for (int64_t panel = k / W; panel < full; ++panel) {
            double* column = l.column(panel, k);
            const int64_t* atom = row.atom + panel * W;
            for (int i = 0; i < W; ++i) column[i] = g[atom[i]];
        }
        double* column = l.column(full, k);
        for (int i = 0; i < W; ++i) column[i] = 0;
        for (int64_t i = 0; i < rest; ++i) column[i] = g[row.atom[full * W + i]];
        column[rest] = row.right[k];
    }
    for (int64_t k = n; k < (full + 1) * W; ++k) store(l.column(full, k), V{});
}

/// sum[t] of the columns j + t, t < W, of N panels at `panel`: the entries, less what the columns
/// before j make of them.
template <int N>
DEEPL0_INLINE void less_before(Panels l, int64_t panel, int64_t block, V (*sum)[W]) {
    const double* rows[N];
    for (int i = 0; i < N; ++i) {
        rows[i] = l.of(panel + i);
        for (int t = 0; t < W; ++t) sum[i][t] = -load(rows[i] + (block * W + t) * W);
    }
    const double* other = l.of(block);
    for (int64_t k = 0; k < block * W; ++k) {
        V v[N];
        for (int i = 0; i < N; ++i) v[i] = load(rows[i] + k * W);
#pragma GCC unroll 8
        for (int t = 0; t < W; ++t) {
            const V factor = all(other[k * W + t]);
            for (int i = 0; i < N; ++i) sum[i][t] = fused(v[i], factor, sum[i][t]);
        }
    }
    for (int i = 0; i < N; ++i)
        for (int t = 0; t < W; ++t) sum[i][t] = -sum[i][t];
}

/// Columns of a block below its diagonal, from the factor of that and the reciprocals of its roots.
template <int N>
DEEPL0_INLINE void below(Panels l, int64_t panel, int64_t block, const double* inverse) {
    V sum[N][W];
    less_before<N>(l, panel, block, sum);
    const double* diagonal = l.column(block, block * W);
#pragma GCC unroll 8
    for (int t = 0; t < W; ++t) {
        for (int i = 0; i < N; ++i) {
            sum[i][t] *= all(inverse[t]);
            store(l.column(panel + i, block * W + t), sum[i][t]);
        }
#pragma GCC unroll 8
        for (int u = t + 1; u < W; ++u)
            for (int i = 0; i < N; ++i)
                sum[i][u] = fused(sum[i][t], all(-diagonal[t * W + u]), sum[i][u]);
    }
}

/// L and, as its row n, y = L^-1 right; inverse [n]: the reciprocals of the diagonal. False where a
/// distance is not above the floor.
DEEPL0_INLINE bool factor(const LeastSquares& f, int64_t n, Panels l, double* inverse) {
    const int64_t panels = n / W + 1;
    for (int64_t block = 0; block * W < n; ++block) {
        V sum[1][W];
        less_before<1>(l, block, block, sum);
        double* diagonal = l.column(block, block * W);
        const int64_t columns = smaller(W, n - block * W);
        for (int64_t t = 0; t < W; ++t) store(diagonal + t * W, sum[0][t]);
        for (int64_t t = 0; t < columns; ++t) {
            double* column = diagonal + t * W;
            if (!(column[t] > f.floor)) return false;
            const double scale = 1 / std::sqrt(column[t]);
            inverse[block * W + t] = scale;
            const V v = load(column) * all(scale);
            store(column, v);
            for (int64_t u = t + 1; u < columns; ++u)
                store(diagonal + u * W, fused(v, all(-column[u]), load(diagonal + u * W)));
        }
        int64_t panel = block + 1;
        for (; panel + kPanels <= panels; panel += kPanels)
            below<kPanels>(l, panel, block, inverse + block * W);
        for (; panel < panels; ++panel) below<1>(l, panel, block, inverse + block * W);
    }
    return true;
}

/// L' z = y, of which z has memory for whole panels.
DEEPL0_INLINE void substitute_back(int64_t n, Panels l, const double* inverse, double* z) {
    const int64_t last = n / W;
    for (int64_t k = 0; k < n; ++k) {
        double& y = l.column(last, k)[n % W];
        z[k] = y;
        y = 0;
    }
    for (int64_t k = n; k < (last + 1) * W; ++k) z[k] = 0;
    for (int64_t block = (n - 1) / W; block >= 0; --block) {
        V sum[W] = {};
        for (int64_t panel = block + 1; panel <= last; ++panel) {
            const V v = load(z + panel * W);
            const double* column = l.column(panel, block * W);
#pragma GCC unroll 8
            for (int t = 0; t < W; ++t) sum[t] = fused(load(column + t * W), v, sum[t]);
        }
        const double* diagonal = l.column(block, block * W);
        for (int64_t t = smaller(W, n - block * W) - 1; t >= 0; --t) {
            const int64_t k = block * W + t;
            double value = z[k] - sum_of_lanes<double, kVectorBytes>(sum[t]);
            for (int64_t u = t + 1; u < smaller(W, n - block * W); ++u)
                value = fused(-diagonal[t * W + u], z[block * W + u], value);
            z[k] = value * inverse[k];
        }
    }
}

/// With the farthest atom first. columns [n, ld]: of L in the order in which atoms are taken, their
/// rows in that of the support; entry n of one is that of y. distance [n], taken [n].
DEEPL0_NOINLINE void farthest_first(const LeastSquares& f, const Row& row, double* columns,
                                    double* distance, int64_t* taken) {
    constexpr double kTaken = -std::numeric_limits<double>::infinity();
    const int64_t n = row.n, ld = round_up(n + 1, W);
    double* w = row.z;  // until it is written
    for (int64_t i = 0; i < n; ++i) distance[i] = f.gram[row.atom[i] * f.ld + row.atom[i]];
    int64_t count = 0;
    for (; count < n; ++count) {
        int64_t at = 0;
        double farthest = kTaken;  // NaN is no distance
        for (int64_t i = 0; i < n; ++i) {
            if (distance[i] > farthest) {
                farthest = distance[i];
                at = i;
            }
        }
        if (!(farthest > f.floor)) break;
        const double* g = f.gram + row.atom[at] * f.ld;
        double* column = columns + count * ld;
        for (int64_t i = 0; i < n; ++i) column[i] = g[row.atom[i]];
        column[n] = row.right[at];
        for (int64_t i = n + 1; i < ld; ++i) column[i] = 0;
        for (int64_t j = 0; j < count; ++j) w[j] = columns[j * ld + at];
        const V scale = all(1 / std::sqrt(farthest));
        for (int64_t i = 0; i < ld; i += W) {
            V sum = load(column + i);
            for (int64_t j = 0; j < count; ++j)
                sum = fused(load(columns + j * ld + i), all(-w[j]), sum);
            store(column + i, sum * scale);
        }
        for (int64_t i = 0; i < n; ++i) distance[i] = fused(-column[i], column[i], distance[i]);
        distance[at] = kTaken;
        taken[count] = at;
    }
    for (int64_t i = 0; i < n; ++i) row.z[i] = 0;
    for (int64_t k = count - 1; k >= 0; --k) {
        const double* column = columns + k * ld;
        double value = column[n];
        for (int64_t j = k + 1; j < count; ++j)
            value = fused(-column[taken[j]], row.z[taken[j]], value);
        row.z[taken[k]] = value / column[taken[k]];
    }
}

/// Memory of a thread.
struct Scratch {
    double *factor, *z, *inverse, *right;
    int64_t *atom, *place, *taken;

    Scratch(void* workspace, int64_t s) {
        const int64_t padded = round_up(s + 1, 8);
        factor = static_cast<double*>(workspace);
        z = factor + padded * padded;
        inverse = z + padded;
        right = inverse + padded;
        atom = reinterpret_cast<int64_t*>(right + padded);
        place = atom + padded;
        taken = place + padded;
    }
};

void solve_impl(const LeastSquares& f, int64_t begin, int64_t end, void* workspace) {
    const Scratch memory(workspace, f.s);
    for (int64_t r = begin; r < end; ++r) {
        const int64_t* support = f.support + r * f.support_stride;
        const double* right = f.right + r * f.right_stride;
        double* out = f.z + r * f.s;
        int64_t n = 0;
        for (int64_t i = 0; i < f.s; ++i) {
            out[i] = 0;
            if (support[i] < 0) continue;
            memory.atom[n] = support[i];
            memory.place[n] = i;
            memory.right[n++] = right[i];
        }
        if (n == 0) continue;
        const Row row{n, memory.atom, memory.place, memory.right, memory.z};
        const Panels l{memory.factor};
        gather(f, row, l);
        if (factor(f, n, l, memory.inverse))
            substitute_back(n, l, memory.inverse, memory.z);
        else
            farthest_first(f, row, memory.factor, memory.inverse, memory.taken);
        for (int64_t i = 0; i < n; ++i) out[row.place[i]] = row.z[i];
    }
}

}  // namespace

extern const LeastSquaresKernels least_squares_table;
const LeastSquaresKernels least_squares_table = {solve_impl};

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLE(LeastSquaresKernels, least_squares)

int64_t least_squares_workspace(int64_t s) {
    const int64_t padded = round_up(s + 1, 8);
    return 8 * (padded * padded + 7 * padded);
}
#endif

}  // namespace deepl0
