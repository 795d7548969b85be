// The pursuits, plain and nonnegative: both forms in arrays of their exact size, at every ISA
// level.
#include "data.h"
#include "omp.h"
#include "sizes.h"

using namespace deepl0;

namespace {

struct Case {
    int64_t rows, n, p, m;
    bool positive, coherent;
    uint64_t seed;
};

template <class T>
struct Problem {
    Case c;
    int64_t ld;
    OmpProblem<T> f;
    Exact<T> x, d, alpha, gram;

    explicit Problem(const Case& c)
        : c(c),
          ld(round_up(c.p, kOmpPad)),
          f{c.n, c.p, c.m, T(1e-5)},
          x(c.rows * c.n),
          d(c.n * c.p),
          alpha(c.rows * ld, T(0)),
          gram(c.p * ld, T(0)) {
        std::mt19937_64 rng(c.seed);
        std::normal_distribution<double> normal;
        for (int64_t i = 0; i < x.n; ++i) x[i] = T(normal(rng));
        for (int64_t j = 0; j < c.p; ++j) {
            std::vector<double> atom(static_cast<size_t>(c.n));
            double square = 0;
            for (double& v : atom) {
                v = normal(rng);
                if (c.coherent) v = std::fabs(v) + 0.2;
                square += v * v;
            }
            for (int64_t i = 0; i < c.n; ++i)
                d[i * c.p + j] = T(atom[size_t(i)] / std::sqrt(square));
        }
        for (int64_t r = 0; r < c.rows; ++r)
            for (int64_t j = 0; j < c.p; ++j) alpha[r * ld + j] = correlation(x.get() + r * c.n, j);
        for (int64_t i = 0; i < c.p; ++i)
            for (int64_t j = 0; j < c.p; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < c.n; ++k)
                    sum += double(d[k * c.p + i]) * double(d[k * c.p + j]);
                gram[i * ld + j] = T(sum);
            }
    }
    T correlation(const T* signal, int64_t j) const {
        double sum = 0;
        for (int64_t k = 0; k < c.n; ++k) sum += double(signal[k]) * double(d[k * c.p + j]);
        return T(sum);
    }
};

template <class T>
struct Codes {
    Exact<T> values, objective;
    Exact<int64_t> indices, count;

    explicit Codes(const Case& c)
        : values(c.rows * c.m),
          objective((c.m + 1) * c.rows),
          indices(c.rows * c.m),
          count(c.rows) {}
    OmpCodes<T> out(const Case& c) const {
        return {values.get(), indices.get(), count.get(), objective.get(), c.rows};
    }
};

template <class T>
void by_gram(const Problem<T>& e, const OmpKernels<T>& kernels, const Codes<T>& found) {
    const Case& c = e.c;
    const Aligned workspace(omp_workspace<T>(c.p, c.m));
    kernels.gram(e.f, e.x.get(), c.n, c.rows, e.alpha.get(), e.gram.get(), e.ld, found.out(c),
                 workspace.get());
}

template <class T>
void by_residual(const Problem<T>& e, const OmpKernels<T>& kernels, const Codes<T>& found) {
    const Case& c = e.c;
    Exact<T> residual(c.rows * c.n), directions(c.rows * c.m * c.n), lower(c.rows * c.m * c.m);
    Exact<T> y(c.rows * c.m), squared(c.rows), scratch(omp_scratch(c.m));
    Exact<int64_t> live(c.rows);
    Exact<int32_t> support(c.rows * c.m), inside(c.rows), waiting(c.rows);
    OmpPanel<T> panel{residual.get(), live.get(),    directions.get(), lower.get(),
                      y.get(),        squared.get(), support.get()};
    if (c.positive) {
        panel.inside = inside.get();
        panel.waiting = waiting.get();
        panel.scratch = scratch.get();
    }
    kernels.start(e.f, e.x.get(), c.n, c.rows, panel, found.out(c));
    int64_t left = c.rows;
    for (int64_t k = 0; k < c.m && left > 0; ++k) {
        Exact<T> alpha(left * e.ld, T(0));
        for (int64_t s = 0; s < left; ++s)
            for (int64_t j = 0; j < c.p; ++j)
                alpha[s * e.ld + j] = e.correlation(residual.get() + s * c.n, j);
        left =
            kernels.step(e.f, k, left, alpha.get(), e.ld, e.d.get(), c.p, 1, panel, found.out(c));
    }
    kernels.finish(e.f, c.rows, panel, found.out(c));
}

/// What every code has: the values are least squares on the atoms that it uses. The dense codes.
template <class T>
std::vector<double> check(const char* isa, const Problem<T>& e, const Codes<T>& found) {
    const Case& c = e.c;
    const double tolerance = 1e4 * unit_roundoff<T>();
    std::vector<double> dense(size_t(c.rows * c.p), 0.0);
    for (int64_t r = 0; r < c.rows; ++r) {
        std::vector<double> left(static_cast<size_t>(c.n));
        for (int64_t k = 0; k < c.n; ++k) left[size_t(k)] = double(e.x[r * c.n + k]);
        CHECK(found.count[r] >= 0 && found.count[r] <= c.m, "%s count %d", isa,
              int(found.count[r]));
        for (int64_t j = 0; j < c.m; ++j) {
            const int64_t atom = found.indices[r * c.m + j];
            const double value = double(found.values[r * c.m + j]);
            CHECK(atom >= 0 && atom < c.p, "%s index %d", isa, int(atom));
            CHECK(j == 0 || atom > found.indices[r * c.m + j - 1], "%s row %d order", isa, int(r));
            CHECK(!c.positive || !std::signbit(value), "%s row %d: %g", isa, int(r), value);
            dense[size_t(r * c.p + atom)] = value;
            for (int64_t k = 0; k < c.n; ++k)
                left[size_t(k)] -= value * double(e.d[k * c.p + atom]);
        }
        double square = 0;
        for (double v : left) square += v * v;
        for (int64_t j = 0; j < c.p; ++j) {
            if (dense[size_t(r * c.p + j)] == 0) continue;
            double slope = 0;
            for (int64_t k = 0; k < c.n; ++k) slope += left[size_t(k)] * double(e.d[k * c.p + j]);
            CHECK(std::fabs(slope) < tolerance * std::sqrt(double(c.n)), "%s row %d atom %d: %g",
                  isa, int(r), int(j), slope);
        }
        for (int64_t k = 0; k < c.m; ++k)
            CHECK(found.objective[(k + 1) * c.rows + r] <=
                      found.objective[k * c.rows + r] * T(1 + tolerance),
                  "%s row %d objective %d rises", isa, int(r), int(k + 1));
        CHECK(near(double(found.objective[c.m * c.rows + r]), square / 2, tolerance * double(c.n)),
              "%s row %d: objective %g, not %g", isa, int(r),
              double(found.objective[c.m * c.rows + r]), square / 2);
    }
    return dense;
}

template <class T>
void compare(const char* isa, const Case& c) {
    const Problem<T> e(c);
    const auto& kernels = c.positive ? omp_positive_kernels<T>() : omp_kernels<T>();
    const Codes<T> one(c), two(c);
    by_residual(e, kernels, one);
    by_gram(e, kernels, two);
    const std::vector<double> a = check(isa, e, one), b = check(isa, e, two);
    if (sizeof(T) == 4) return;  // near-ties may go another way
    for (size_t i = 0; i < a.size(); ++i)
        CHECK(near(a[i], b[i], 1e-8 * (1 + std::fabs(a[i]))), "%s n %d p %d m %d: %g and %g", isa,
              int(c.n), int(c.p), int(c.m), a[i], b[i]);
    CHECK(same(one.count.get(), two.count.get(), c.rows), "%s counts", isa);
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        uint64_t seed = 1;
        for (const int64_t p : {1, 2, 15, 16, 17, 40, 130, 300})
            for (const int64_t m : {int64_t(1), smaller(p, 5), smaller(p, 12)})
                for (const bool positive : {false, true})
                    for (const bool coherent : {false, true}) {
                        const Case c{7, m + 8, p, m, positive, coherent, seed++};
                        compare<float>(isa, c);
                        compare<double>(isa, c);
                    }
    });
    return report("test_omp");
}
