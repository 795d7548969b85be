// Least squares by the Gram matrix: in arrays of their exact size, at every ISA level.
#include "data.h"
#include "least_squares.h"

using namespace deepl0;

namespace {

struct Case {
    int64_t rows, p, s;
    bool twins;   // atoms 0 and 1 are alike, 2 and 3 of opposite signs, 4 is none
    double gone;  // share of the places without an atom
    uint64_t seed;
};

constexpr double kFloor = 1e-5;

void compare(const char* isa, const Case& c) {
    std::mt19937_64 rng(c.seed);
    std::normal_distribution<double> normal;
    const int64_t n = c.p + 20;
    std::vector<double> d(size_t(n * c.p));
    for (double& v : d) v = normal(rng);
    const auto atom = [&](int64_t j) { return d.data() + j * n; };
    const auto dot = [&](const double* a, const double* b) {
        double sum = 0;
        for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
        return sum;
    };
    if (c.twins)
        for (int64_t k = 0; k < n; ++k) {
            atom(1)[k] = atom(0)[k];
            atom(3)[k] = -atom(2)[k];
            atom(4)[k] = 0;
        }
    for (int64_t j = 0; j < c.p; ++j) {
        const double size = std::sqrt(dot(atom(j), atom(j)));
        for (int64_t k = 0; size > 0 && k < n; ++k) atom(j)[k] /= size;
    }
    const Exact<double> gram(c.p * c.p), right(c.rows * c.s), z(c.rows * c.s);
    const Exact<int64_t> support(c.rows * c.s);
    for (int64_t i = 0; i < c.p; ++i)
        for (int64_t j = 0; j < c.p; ++j) gram[i * c.p + j] = dot(atom(i), atom(j));
    for (int64_t r = 0; r < c.rows; ++r) {
        std::vector<double> x(static_cast<size_t>(n));
        for (double& v : x) v = normal(rng);
        const std::vector<int64_t> at = draw_indices(rng, c.p, c.s);
        for (int64_t i = 0; i < c.s; ++i) {
            const bool gone = double(rng() % 1000) < 1000 * c.gone;
            support[r * c.s + i] = gone ? -1 : at[size_t(i)];
            right[r * c.s + i] = gone ? std::nan("") : dot(atom(at[size_t(i)]), x.data());
        }
    }
    const Aligned workspace(least_squares_workspace(c.s));
    const LeastSquares problem{gram.get(), c.p,           kFloor, c.s,    right.get(),
                               c.s,        support.get(), c.s,    z.get()};
    least_squares_kernels().solve(problem, 0, c.rows, workspace.get());
    for (int64_t r = 0; r < c.rows; ++r) {
        const double* values = z.get() + r * c.s;
        const int64_t* at = support.get() + r * c.s;
        for (int64_t i = 0; i < c.s; ++i) {
            if (at[i] < 0) {
                CHECK(values[i] == 0, "%s s %d row %d: no atom, %g", isa, int(c.s), int(r),
                      values[i]);
                continue;
            }
            // The residual of least squares is orthogonal to every atom, dependent ones too.
            double sum = 0;
            for (int64_t j = 0; j < c.s; ++j)
                if (at[j] >= 0) sum += gram[at[i] * c.p + at[j]] * values[j];
            CHECK(near(sum, right[r * c.s + i], 1e-11 * double(n)),
                  "%s s %d row %d place %d: %g, not %g", isa, int(c.s), int(r), int(i), sum,
                  right[r * c.s + i]);
            // Of two that are alike one is 0; ties go to the lowest place.
            if (c.twins && at[i] == 4) CHECK(values[i] == 0, "%s zero atom: %g", isa, values[i]);
            for (int64_t j = 0; c.twins && j < i; ++j)
                if ((at[j] == 0 && at[i] == 1) || (at[j] == 2 && at[i] == 3))
                    CHECK((values[i] == 0) != (values[j] == 0), "%s s %d row %d: %g and %g", isa,
                          int(c.s), int(r), values[j], values[i]);
        }
    }
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        uint64_t seed = 1;
        for (const int64_t s : {1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 64, 65})
            for (const int64_t p : {s, s + 9})
                for (const double gone : {0.0, 0.3})
                    for (const bool twins : {false, true}) {
                        if (twins && p < 5) continue;
                        compare(isa, {5, p, s, twins, gone, seed++});
                    }
    });
    return report("test_least_squares");
}
