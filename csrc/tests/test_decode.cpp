// The kernels of decode, forward and backward, against plain loops in float64.
#include "data.h"
#include "decode.h"
#include "unit_lists.h"

using namespace deepl0;

namespace {

constexpr int kIntegers = -1;

struct Case {
    int64_t rows, n, p, m;
    int flavour;  // of the values of the code and of the gradient
    uint64_t seed;
};

template <class T>
void test_case(const char* isa, const Case& c) {
    std::mt19937_64 rng(c.seed);
    const bool whole = c.flavour == kIntegers;
    const int64_t n = c.n, p = c.p, m = c.m;
    Exact<T> values(c.rows * m), d(n * p), dt(p * n), grad(c.rows * n);
    Exact<int64_t> indices(c.rows * m);
    const auto number = [&](int64_t j) {
        return T(whole ? integer(rng, 7) : draw(rng, c.flavour, j, p));
    };
    for (int64_t r = 0; r < c.rows; ++r) {
        auto chosen = draw_indices(rng, p, m);
        // decode takes the indices of a row in any order.
        if (r % 2) std::shuffle(chosen.begin(), chosen.end(), rng);
        std::copy(chosen.begin(), chosen.end(), indices.get() + r * m);
    }
    for (int64_t i = 0; i < values.n; ++i) values[i] = number(i % 50);
    for (int64_t i = 0; i < grad.n; ++i) grad[i] = number(i % 50);
    for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < p; ++i)
            d[k * p + i] = dt[i * n + k] = T(whole ? integer(rng, 7) : draw(rng, 0, 0, 0));

    char where[160];
    std::snprintf(where, sizeof where, "%s f%d rows=%ld n=%ld p=%ld m=%ld flavour=%d seed=%lu", isa,
                  int(8 * sizeof(T)), long(c.rows), long(n), long(p), long(m), c.flavour,
                  (unsigned long)c.seed);
    const auto bound = [&](double magnitude, int64_t terms) {
        const double least = double(std::numeric_limits<T>::denorm_min());
        return whole ? 0 : double(terms + 2) * (2 * unit_roundoff<T>() * magnitude + least);
    };
    const auto& kernels = decode_kernels<T>();

    Exact<T> out(c.rows * n), scattered(c.rows * n);
    kernels.rows(values.get(), indices.get(), c.rows, m, dt.get(), n, out.get());
    kernels.columns(values.get(), indices.get(), c.rows, m, d.get(), n, p, scattered.get());
    // Both add the terms of an output in the order of the code.
    CHECK(same(out.get(), scattered.get(), out.n), "%s: columns", where);
    bool good = true;
    for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t k = 0; k < n; ++k) {
            double sum = 0, magnitude = 0;
            for (int64_t j = r * m; j < (r + 1) * m; ++j) {
                const double term = double(values[j]) * double(d[k * p + indices[j]]);
                sum += term;
                magnitude += std::fabs(term);
            }
            good = good && near(double(out[r * n + k]), sum, bound(magnitude, m));
        }
    }
    CHECK(good, "%s: rows", where);

    Exact<T> grad_values(c.rows * m);
    kernels.dots(grad.get(), indices.get(), c.rows, m, dt.get(), n, grad_values.get());
    good = true;
    for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t j = r * m; j < (r + 1) * m; ++j) {
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < n; ++k) {
                const double term = double(grad[r * n + k]) * double(d[k * p + indices[j]]);
                sum += term;
                magnitude += std::fabs(term);
            }
            good = good && near(double(grad_values[j]), sum, bound(magnitude, n));
        }
    }
    CHECK(good, "%s: dots", where);

    // The gradient of D': the rows of grad combined by unit, as the binding does.
    Exact<int32_t> narrow(c.rows * m), start(p + 1), row(c.rows * m);
    Exact<T> coefficient(c.rows * m), grad_dt(p * n, T(0));
    std::copy_n(indices.get(), indices.n, narrow.get());
    const UnitLists<T> lists{start.get(), row.get(), coefficient.get(), nullptr};
    unit_kernels<T>().group({narrow.get(), values.get(), nullptr, m}, c.rows, p, lists);
    unit_kernels<T>().combine(lists, 0, p, grad.get(), n, n, grad_dt.get());
    std::vector<double> want(size_t(p * n), 0), magnitude(size_t(p * n), 0);
    for (int64_t j = 0; j < c.rows * m; ++j) {
        for (int64_t k = 0; k < n; ++k) {
            const double term = double(values[j]) * double(grad[j / m * n + k]);
            want[size_t(indices[j] * n + k)] += term;
            magnitude[size_t(indices[j] * n + k)] += std::fabs(term);
        }
    }
    good = true;
    for (int64_t e = 0; e < p * n; ++e)
        good =
            good && near(double(grad_dt[e]), want[size_t(e)], bound(magnitude[size_t(e)], c.rows));
    CHECK(good, "%s: gradient of D", where);
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        std::mt19937_64 rng(31);
        for (int64_t n : {1, 3, 4, 7, 16, 31, 64, 129, 200}) {
            for (int64_t p : {1, 6, 40}) {
                for (int64_t m : {int64_t(0), std::min<int64_t>(p, 5), p}) {
                    for (int flavour : {kIntegers, 0}) {
                        const Case c{int64_t(1 + rng() % 5), n, p, m, flavour, rng()};
                        test_case<float>(isa, c);
                        test_case<double>(isa, c);
                    }
                }
            }
        }
        // Zeros of both signs, NaN and inf, subnormals. (Products of two huge entries would leave
        // the range of float32 but not of float64.)
        for (int flavour : {1, 2, 3, 4, 5, 7, 8}) {
            test_case<float>(isa, {4, 37, 20, 6, flavour, rng()});
            test_case<double>(isa, {4, 37, 20, 6, flavour, rng()});
        }
    });
    return report("test_decode");
}
