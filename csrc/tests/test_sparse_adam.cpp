// Row-sparse Adam at every level, against the formula in double.
#include "data.h"
#include "sparse_adam.h"

namespace {

using deepl0::AdamStep;

template <class T>
void step_by_formula(const AdamStep<T>& by, int64_t n, const T* g, T* w, T* a, T* b) {
    double squared = 0, along = 0;
    for (int64_t i = 0; i < n; ++i) squared += double(w[i]) * double(w[i]);
    for (int64_t i = 0; i < n; ++i) along += double(g[i]) * double(w[i]);
    along = by.unit_norm && squared > 0 ? along / squared : 0;
    double norm = 0;
    std::vector<double> out(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
        const double d = double(g[i]) - along * double(w[i]);
        const double first = double(a[i]) + (1 - double(by.beta1)) * (d - double(a[i]));
        const double second = double(by.beta2) * double(b[i]) + (1 - double(by.beta2)) * d * d;
        const double root = std::sqrt(second) / double(by.root) + double(by.eps);
        out[size_t(i)] = double(w[i]) - double(by.step_size) * first / root;
        norm += out[size_t(i)] * out[size_t(i)];
        a[i] = T(first);
        b[i] = T(second);
    }
    norm = by.unit_norm && norm > 0 ? std::sqrt(norm) : 1;
    for (int64_t i = 0; i < n; ++i) w[i] = T(out[size_t(i)] / norm);
}

template <class T>
struct State {
    Exact<T> w, a, b;
};

template <class T>
void check_rows(const char* isa, int64_t n, bool unit_norm) {
    constexpr int64_t kRows = 7;
    std::mt19937_64 rng{uint64_t(n)};
    std::normal_distribution<double> normal;
    const int64_t size = kRows * n;
    const Exact<T> g(size);
    const auto fresh = [&] { return State<T>{Exact<T>(size), Exact<T>(size), Exact<T>(size)}; };
    const State<T> old = fresh(), got = fresh(), want = fresh();
    for (int64_t i = 0; i < size; ++i) {
        g[i] = T(normal(rng));
        old.w[i] = i / n == 3 ? T(0) : T(normal(rng));  // a unit without a direction
        old.a[i] = T(0.1 * normal(rng));
        old.b[i] = T(std::fabs(normal(rng)) + 0.01);
    }
    // Rows 0 and 4 have no gradient, 5 and 6 one entry of it: the last, and a subnormal.
    for (int64_t i = 0; i < n; ++i) {
        g[i] = T(0);
        g[4 * n + i] = T(-0.0);
        g[5 * n + i] = i == n - 1 ? T(1) : T(0);
        g[6 * n + i] = i == 0 ? std::numeric_limits<T>::denorm_min() : T(0);
    }
    for (const State<T>* s : {&got, &want}) {
        std::copy_n(old.w.get(), size, s->w.get());
        std::copy_n(old.a.get(), size, s->a.get());
        std::copy_n(old.b.get(), size, s->b.get());
    }
    const AdamStep<T> by{T(0.9), T(0.999), T(0.05), T(0.3), T(1e-8), unit_norm};
    deepl0::sparse_adam_kernels<T>().step(by, kRows, n, g.get(), got.w.get(), got.a.get(),
                                          got.b.get());
    for (const int64_t r : {1, 2, 3, 5, 6})
        step_by_formula(by, n, g.get() + r * n, want.w.get() + r * n, want.a.get() + r * n,
                        want.b.get() + r * n);
    for (int64_t i = 0; i < size; ++i) {
        const bool still = i / n == 0 || i / n == 4;
        const double bound = still ? 0 : 64 * unit_roundoff<T>();
        const auto within = [&](T x, T y) {
            return near(double(x), double(y), bound * (1 + std::fabs(double(y))));
        };
        CHECK(within(got.w[i], want.w[i]), "%s n=%d i=%d %g %g", isa, int(n), int(i),
              double(got.w[i]), double(want.w[i]));
        CHECK(within(got.a[i], want.a[i]), "%s n=%d i=%d", isa, int(n), int(i));
        CHECK(within(got.b[i], want.b[i]), "%s n=%d i=%d", isa, int(n), int(i));
        if (still) CHECK(got.w[i] == old.w[i], "%s n=%d i=%d", isa, int(n), int(i));
    }
}

template <class T>
void check_nan(const char* isa) {
    const Exact<T> g(3, T(0)), w(3, T(1)), a(3, T(0)), b(3, T(0));
    g[1] = std::numeric_limits<T>::quiet_NaN();
    const AdamStep<T> by{T(0.9), T(0.999), T(0.1), T(1), T(1e-8), false};
    deepl0::sparse_adam_kernels<T>().step(by, 1, 3, g.get(), w.get(), a.get(), b.get());
    CHECK(w[0] == T(1) && std::isnan(w[1]) && w[2] == T(1), "%s", isa);
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        for (const int64_t n : {1, 2, 3, 15, 16, 17, 64, 100, 385}) {
            for (const bool unit_norm : {false, true}) {
                check_rows<float>(isa, n, unit_norm);
                check_rows<double>(isa, n, unit_norm);
            }
        }
        check_nan<float>(isa);
        check_nan<double>(isa);
    });
    return report("test_sparse_adam");
}
