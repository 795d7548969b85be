#include <algorithm>

#include "check.h"
#include "thresholds.h"

using namespace deepl0;

namespace {

constexpr ThresholdKind kKinds[] = {ThresholdKind::hard, ThresholdKind::soft, ThresholdKind::helu,
                                    ThresholdKind::ste, ThresholdKind::ste_theta};

double part(double u, bool positive) { return positive && u <= 0 ? 0 : u; }

double sign(double u) { return u > 0 ? 1 : u < 0 ? -1 : 0; }

/// The definitions of thresholds.h, in double. lo comes in the compute type: it is a decision.
double forward(ThresholdKind kind, double u, double theta, double sigma, double lo) {
    const double a = std::fabs(u);
    if (std::isnan(theta)) return theta;
    if (kind == ThresholdKind::soft) return std::isnan(u) ? u : sign(u) * std::max(a - theta, 0.0);
    if (kind == ThresholdKind::helu && sigma > 0 && a < theta) {
        return a <= lo ? 0 : sign(u) * (a - lo) / sigma;
    }
    return a < theta ? 0 : u;
}

void backward(ThresholdKind kind, double u, double theta, double sigma, double lo, double& c,
              double& e) {
    const double a = std::fabs(u);
    c = kind == ThresholdKind::soft ? a > theta : a >= theta;
    e = kind == ThresholdKind::soft && a > theta ? -sign(u) : 0;
    const bool ramp = sigma > 0 && lo < a && a < theta;
    if (!ramp || kind == ThresholdKind::hard || kind == ThresholdKind::soft) return;
    e = -sign(u) * (1 - sigma) / sigma;
    if (kind != ThresholdKind::ste_theta) c = 1 / sigma;
}

template <typename S>
struct Compute {
    using type = float;
};
template <>
struct Compute<double> {
    using type = double;
};

bool close(double got, double want, double tolerance) {
    if (std::isnan(want)) return std::isnan(got);
    return got == want || std::fabs(got - want) <= tolerance * (1 + std::fabs(want));
}

template <typename S>
void test_case(const char* isa, DType dtype, Threshold h, bool per_entry, double sigma,
               int64_t rows, int64_t p, int flavour, uint64_t seed) {
    const ThresholdKind kind = h.kind;
    using T = typename Compute<S>::type;
    std::mt19937_64 rng(seed);
    const int64_t stride = p + int64_t(rng() % 3);
    const double eps = dtype == DType::f64   ? 1e-14
                       : dtype == DType::f32 ? 2e-6
                       : dtype == DType::f16 ? 1e-3
                                             : 8e-3;
    std::vector<T> theta(size_t(per_entry ? p : 1));
    for (T& t : theta) t = T(0.25 + double(rng() % 64) / 32);
    if (h.may_be_zero() && seed % 3 == 0) theta[0] = T(0);
    if (flavour == 4) theta[0] = std::numeric_limits<T>::quiet_NaN();
    std::vector<S> u(size_t(rows * stride + 1)), g(u), out(u), grad_u(size_t(rows * p));
    for (size_t i = 0; i < u.size(); ++i) {
        u[i] = from_double<S>(draw(rng, flavour, int64_t(i), 10));
        g[i] = from_double<S>(draw(rng, 0, 0, 0));
    }
    const S* u1 = u.data() + 1;  // off the allocator's alignment
    const S* g1 = g.data() + 1;
    threshold_kernels().threshold(dtype, h, u1, stride, theta.data(), per_entry, sigma, out.data(),
                                  stride, p, 0, rows / 3);
    threshold_kernels().threshold(dtype, h, u1, stride, theta.data(), per_entry, sigma, out.data(),
                                  stride, p, rows / 3, rows);

    std::vector<double> ws(threshold_backward_workspace_bytes(rows, p, per_entry) / 8);
    const int64_t blocks = threshold_blocks(rows);
    const auto run_blocks = [&](int64_t b, int64_t e) {
        threshold_kernels().backward(dtype, h, g1, stride, u1, stride, theta.data(), per_entry,
                                     sigma, grad_u.data(), rows, p, b, e, ws.data());
    };
    std::vector<T> whole(theta.size()), parts(theta.size());
    run_blocks(0, blocks);
    reduce_grad_theta(dtype, ws.data(), rows, p, per_entry, whole.data(), 0, int64_t(whole.size()));
    for (int64_t b = blocks; b-- > 0;) run_blocks(b, b + 1);
    for (int64_t j = int64_t(parts.size()); j-- > 0;) {
        reduce_grad_theta(dtype, ws.data(), rows, p, per_entry, parts.data(), j, j + 1);
    }
    CHECK(!memcmp(whole.data(), parts.data(), whole.size() * sizeof(T)), "partition changes theta");

    std::vector<double> want_theta(theta.size()), scale(theta.size());
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < p; ++j) {
            const size_t at = size_t(r * stride + j), which = per_entry ? size_t(j) : 0;
            const T t = theta[which], lo = T(1.0 - sigma) * t;
            const double x = as_double(u1[at]), gi = as_double(g1[at]);
            double c, e;
            const double v = part(x, h.positive);
            backward(kind, v, double(t), sigma, double(lo), c, e);
            if (h.positive && x <= 0) c = 0;
            const double want = forward(kind, v, double(t), sigma, double(lo));
            const double tolerance = eps / (sigma > 0 ? std::min(1.0, sigma) : 1);
            CHECK(close(as_double(out[at]), as_double(from_double<S>(want)), tolerance),
                  "%s %s kind=%d sigma=%g u=%.9g theta=%.9g: %.9g, not %.9g", isa, name_of(dtype),
                  int(kind), sigma, x, double(t), as_double(out[at]), want);
            CHECK(
                close(as_double(grad_u[size_t(r * p + j)]), as_double(from_double<S>(c * gi)), eps),
                "%s %s kind=%d sigma=%g grad at u=%g", isa, name_of(dtype), int(kind), sigma, x);
            want_theta[which] += e * gi;
            scale[which] += std::fabs(e * gi);
        }
    }
    for (size_t j = 0; j < theta.size(); ++j) {
        const double slack = (dtype == DType::f64 ? 1e-13 : 1e-6) * (scale[j] + 1e-30);
        CHECK(std::fabs(double(whole[j]) - want_theta[j]) <= slack,
              "%s %s kind=%d grad_theta %g %g", isa, name_of(dtype), int(kind), double(whole[j]),
              want_theta[j]);
    }
    std::vector<S> in_place(u);
    threshold_kernels().threshold(dtype, h, in_place.data() + 1, stride, theta.data(), per_entry,
                                  sigma, in_place.data() + 1, stride, p, 0, rows);
    for (int64_t r = 0; r < rows; ++r) {
        CHECK(!memcmp(in_place.data() + 1 + r * stride, out.data() + r * stride,
                      size_t(p) * sizeof(S)),
              "in place");
    }
}

void test_random(const char* isa) {
    std::mt19937_64 rng(11);
    for (int64_t p : {1, 3, 8, 17, 64, 100, 255, 256, 257, 600}) {
        for (DType t : kDTypes) {
            for (ThresholdKind kind : kKinds) {
                for (double sigma : {0.0, 0.2, 1e-3, 1.0}) {
                    const bool per_entry = rng() % 2, positive = rng() % 2;
                    const int flavour = int(rng() % 7);
                    const int64_t rows = int64_t(rng() % 70);
                    with_type(t, [&](auto x) {
                        test_case<decltype(x)>(isa, t, {kind, positive}, per_entry, sigma, rows, p,
                                               flavour, rng());
                    });
                }
            }
        }
    }
}

void test_equality(const char* isa) {
    const float theta = 0.7f, u[4] = {0.7f, -0.7f, std::nextafter(0.7f, 0.0f), 1.0f};
    float out[4];
    for (ThresholdKind kind : kKinds) {
        threshold_kernels().threshold(DType::f32, {kind}, u, 4, &theta, false, 0.0, out, 4, 4, 0,
                                      1);
        if (kind == ThresholdKind::soft)
            CHECK(out[0] == 0 && out[1] == 0, "%s", isa);
        else
            CHECK(out[0] == u[0] && out[1] == u[1] && out[2] == 0, "%s: keep at equality", isa);
    }
}

void test_bad_theta() {
    const float f[4] = {1, 0, -1, NAN};
    const double d[2] = {1, -1e-300};
    CHECK(first_bad_theta(DType::f32, {ThresholdKind::hard}, f, 4) == 2, "negative");
    CHECK(first_bad_theta(DType::f32, {ThresholdKind::soft}, f, 2) == -1, "zero is fine");
    CHECK(first_bad_theta(DType::f32, {ThresholdKind::helu}, f, 4) == 1, "zero is not");
    CHECK(first_bad_theta(DType::f32, {ThresholdKind::hard}, f + 3, 1) == 0, "NaN");
    CHECK(first_bad_theta(DType::f64, {ThresholdKind::soft}, d, 2) == 1, "tiny");
    CHECK(first_bad_theta(DType::f64, {ThresholdKind::ste}, d, 0) == -1, "none");
}

}  // namespace

int main() {
    for_each_isa(test_random);
    for_each_isa(test_equality);
    test_bad_theta();
    return report("test_thresholds");
}
