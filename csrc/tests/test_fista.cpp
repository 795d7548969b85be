// FISTA's kernels against a plain loop in float64: rows through D'D, through the residual, and a
// whole batch of dense ones, with pauses, at every ISA level.
#include "data.h"
#include "fista.h"

using namespace deepl0;

namespace {

struct Case {
    int64_t rows, n, p, max_iter, most;
    uint64_t seed;
    bool positive;
};

/// The plain loop of one row: its code, objectives [iterations + 1], and whether it converged.
struct Plain {
    std::vector<double> code, objective;
    bool converged = false;
};

template <class T>
struct Problem {
    Case c;
    FistaProblem<T> f;
    Exact<T> x, atoms, b, gram;  // atoms = -D'
    std::vector<double> d;

    explicit Problem(const Case& c)
        : c(c), x(c.rows * c.n), atoms(c.p * c.n), b(c.rows * c.p), gram(c.p * c.p) {
        std::mt19937_64 rng(c.seed);
        d.resize(size_t(c.n * c.p));
        double square = 0;
        for (double& v : d) {
            v = double(T(draw(rng, 0, 0, 0)));
            square += v * v;
        }
        const double step = 1 / square, lam = 0.3;
        f = {c.p, T(step), T(lam), T(step * lam), 1e-3, c.max_iter, c.positive};
        for (int64_t i = 0; i < x.n; ++i) x[i] = T(draw(rng, 0, 0, 0));
        for (int64_t j = 0; j < c.p; ++j)
            for (int64_t k = 0; k < c.n; ++k) atoms[j * c.n + k] = T(-at(k, j));
        for (int64_t r = 0; r < c.rows; ++r)
            for (int64_t j = 0; j < c.p; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < c.n; ++k) sum += double(x[r * c.n + k]) * at(k, j);
                b[r * c.p + j] = T(step * sum);
            }
        for (int64_t i = 0; i < c.p; ++i)
            for (int64_t j = 0; j < c.p; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < c.n; ++k) sum += at(k, i) * at(k, j);
                gram[i * c.p + j] = T(-step * sum);
            }
    }
    double at(int64_t k, int64_t j) const { return d[size_t(k * c.p + j)]; }

    /// mu D'(x - D a)
    std::vector<double> slope(int64_t r, const std::vector<double>& a) const {
        std::vector<double> q(size_t(c.p));
        for (int64_t j = 0; j < c.p; ++j) {
            q[size_t(j)] = double(b[r * c.p + j]);
            for (int64_t i = 0; i < c.p; ++i)
                q[size_t(j)] += double(gram[j * c.p + i]) * a[size_t(i)];
        }
        return q;
    }
    double objective(int64_t r, const std::vector<double>& a) const {
        double value = 0;
        for (int64_t k = 0; k < c.n; ++k) {
            double left = double(x[r * c.n + k]);
            for (int64_t j = 0; j < c.p; ++j) left -= at(k, j) * a[size_t(j)];
            value += left * left / 2;
        }
        for (double v : a) value += double(f.lam) * std::fabs(v);
        return value;
    }

    /// The largest correlation of row r.
    double largest(int64_t r) const {
        double most = 0;
        for (int64_t j = 0; j < c.p; ++j) {
            const double v = double(b[r * c.p + j]);
            most = std::max(most, c.positive ? v : std::fabs(v));
        }
        return most;
    }

    Plain plain(int64_t r) const {
        const size_t p = size_t(c.p);
        std::vector<double> a(p), old(p), before(p), y(p);
        double t = 1, w = 0, threshold = largest(r);
        Plain out;
        out.objective.push_back(objective(r, a));
        for (int64_t k = 1; k <= c.max_iter; ++k) {
            threshold = std::max(double(f.threshold), double(T(kFistaFall)) * threshold);
            const std::vector<double> q = slope(r, a);
            double uphill = 0, moved = 0, size = 0;
            std::vector<double> next(p);
            for (size_t j = 0; j < p; ++j) {
                y[j] = a[j] + w * (a[j] - old[j]);
                const double u = y[j] + q[j] + w * (q[j] - before[j]);
                const double reach = c.positive ? u : std::fabs(u);
                next[j] = std::copysign(std::max(0.0, reach - threshold), c.positive ? 1.0 : u);
                uphill += (y[j] - next[j]) * (next[j] - a[j]);
                moved += (next[j] - a[j]) * (next[j] - a[j]);
                size += next[j] * next[j];
            }
            if (uphill > 0) t = 1;
            const double t_next = (1 + std::sqrt(1 + 4 * t * t)) / 2;
            w = uphill > 0 ? 0 : (t - 1) / t_next;
            t = t_next;
            old = a, before = q, a = next;
            out.objective.push_back(objective(r, a));
            if (k % kIhtCheckEvery != 0 && k != c.max_iter) continue;
            out.converged = threshold == double(f.threshold) && moved <= 1e-6 * size;
            if (out.converged) break;
        }
        out.code = a;
        return out;
    }
};

/// The state of all rows in arrays of their exact size.
template <class T>
struct State {
    Exact<T> even, odd, slopes, t, momentum, threshold, half_xx, objective, history;
    Exact<int32_t> count;
    Exact<int64_t> iterations;
    Exact<IhtStatus> status;
    Exact<bool> converged;
    T* blocks[1];
    FistaRows<T> rows;

    explicit State(const Problem<T>& e)
        : even(e.c.rows * e.c.p, T(0)),
          odd(e.c.rows * e.c.p, T(0)),
          slopes(e.c.rows * e.c.p, T(0)),
          t(e.c.rows, T(1)),
          momentum(e.c.rows, T(0)),
          threshold(e.c.rows, T(0)),
          half_xx(e.c.rows, T(0)),
          objective(e.c.rows),
          history(kIhtBlock * e.c.rows),
          count(e.c.rows, 0),
          iterations(e.c.rows, 0),
          status(e.c.rows, IhtStatus::running),
          converged(e.c.rows, false),
          blocks{history.get()} {
        for (int64_t r = 0; r < e.c.rows; ++r) {
            threshold[r] = T(e.largest(r));
            double sum = 0;
            for (int64_t k = 0; k < e.c.n; ++k)
                sum += double(e.x[r * e.c.n + k]) * double(e.x[r * e.c.n + k]);
            half_xx[r] = T(sum / 2);
        }
        rows = {{even.get(), odd.get()},
                slopes.get(),
                t.get(),
                momentum.get(),
                threshold.get(),
                count.get(),
                iterations.get(),
                status.get(),
                converged.get(),
                half_xx.get(),
                objective.get(),
                blocks,
                e.c.rows,
                e.c.max_iter};
    }
    const T* code(int64_t r, int64_t p) const {
        return (iterations[r] % 2 ? odd : even).get() + r * p;
    }
};

/// All rows to their end, as the operator does it; pausing once on the way.
template <class T>
void solve(const Problem<T>& e, State<T>& s, bool by_residual) {
    const Case& c = e.c;
    const auto& kernels = fista_kernels<T>();
    const Aligned workspace(fista_workspace<T>(c.p));
    std::vector<int32_t> active(static_cast<size_t>(c.rows)), dense;
    std::iota(active.begin(), active.end(), 0);
    kernels.advance(e.f, s.rows, active.data(), c.rows, e.b.get(), nullptr, false);
    s.rows.limit = std::min<int64_t>(3, c.max_iter);
    for (int pass = 0; !active.empty() && pass < 200; ++pass) {
        if (!by_residual)
            kernels.iterate(e.f, s.rows, active.data(), int64_t(active.size()), e.b.get(),
                            e.gram.get(), c.most, workspace.get());
        dense.clear();
        for (int32_t r : active)
            if (s.status[r] != IhtStatus::done && (by_residual || s.count[r] > c.most))
                dense.push_back(r);
        const int64_t n = int64_t(dense.size());
        Exact<T> q(n * c.p), left(n * c.n);
        if (by_residual)
            kernels.residual(e.f, s.rows, dense.data(), n, e.x.get(), c.n, e.atoms.get(), c.n,
                             left.get(), workspace.get());
        for (int64_t i = 0; i < n; ++i) {
            const int32_t r = dense[size_t(i)];
            const T* a = s.code(r, c.p);
            for (int64_t j = 0; j < c.p; ++j) {
                double sum = 0;
                if (by_residual)
                    for (int64_t k = 0; k < c.n; ++k)
                        sum += double(e.f.step) * e.at(k, j) * double(left[i * c.n + k]);
                else
                    for (int64_t k = 0; k < c.p; ++k)
                        sum += double(e.gram[j * c.p + k]) * double(a[k]);
                q[i * c.p + j] = T(sum);
            }
        }
        kernels.advance(e.f, s.rows, dense.data(), n, e.b.get(), q.get(), !by_residual);
        s.rows.limit = c.max_iter;
        active.erase(std::remove_if(active.begin(), active.end(),
                                    [&](int32_t r) { return s.status[r] == IhtStatus::done; }),
                     active.end());
    }
    CHECK(active.empty(), "%zu rows never ended", active.size());
}

template <class T>
void compare(const char* isa, const Case& c) {
    const Problem<T> e(c);
    for (const bool by_residual : {false, true}) {
        State<T> s(e);
        solve(e, s, by_residual);
        for (int64_t r = 0; r < c.rows; ++r) {
            const Plain want = e.plain(r);
            const double scale = want.objective[0] + 1;
            const double bound = 64 * double(c.n + c.p + c.max_iter) * unit_roundoff<T>() * scale;
            const int64_t k = s.iterations[r];
            CHECK(k == int64_t(want.objective.size()) - 1, "%s p %d row %d: %d iterations, not %zu",
                  isa, int(c.p), int(r), int(k), want.objective.size() - 1);
            CHECK(s.converged[r] == want.converged, "%s p %d row %d", isa, int(c.p), int(r));
            int64_t used = 0;
            for (int64_t j = 0; j < c.p; ++j) {
                const T got = s.code(r, c.p)[j];
                used += got != T(0);
                CHECK(!c.positive || !std::signbit(got), "%s p %d: %g", isa, int(c.p), double(got));
                CHECK(near(double(got), want.code[size_t(j)], bound), "%s p %d row %d: %g not %g",
                      isa, int(c.p), int(r), double(got), want.code[size_t(j)]);
            }
            CHECK(used == s.count[r], "%s %d nonzeros, not %d", isa, int(used), int(s.count[r]));
            for (int64_t i = 0; i <= std::min<int64_t>(k, int64_t(want.objective.size()) - 1); ++i)
                CHECK(near(double(s.history[i * c.rows + r]), want.objective[size_t(i)], bound),
                      "%s p %d row %d objective %d: %g not %g", isa, int(c.p), int(r), int(i),
                      double(s.history[i * c.rows + r]), want.objective[size_t(i)]);
            CHECK(s.objective[r] == s.history[k * c.rows + r], "%s last objective", isa);
        }
    }
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        uint64_t seed = 1;
        for (const int64_t p : {1, 2, 7, 15, 16, 17, 33, 64, 100})
            for (const int64_t most : {int64_t(0), p / 4, p, int64_t(-1)}) {
                const bool positive = most < 0 || seed % 2 == 0;
                const int64_t n = std::max<int64_t>(1, p / 2), steps = 1 + int64_t(seed % 3) * 20;
                const Case c{5, n, p, steps, most < 0 ? p / 4 : most, seed, positive};
                ++seed;
                compare<float>(isa, c);
                compare<double>(isa, c);
            }
    });
    return report("test_fista");
}
