// What the tests share: a check that reports and counts, seeded data with adversarial values, and
// the loop over ISA levels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "dtype.h"
#include "isa.h"

inline int g_failures = 0;
inline int g_checks = 0;

#define CHECK(condition, ...)                                           \
    do {                                                                \
        ++g_checks;                                                     \
        if (!(condition) && ++g_failures <= 20) {                       \
            std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::printf(__VA_ARGS__);                                   \
            std::printf("\n");                                          \
        }                                                               \
    } while (0)

inline int report(const char* name) {
    std::printf("%s: %d checks, %d failures\n", name, g_checks, g_failures);
    return g_failures != 0;
}

template <typename F>
void for_each_isa(F run) {
    for (auto isa : {deepl0::Isa::scalar, deepl0::Isa::avx2, deepl0::Isa::avx512}) {
        if (!deepl0::isa_supported(isa)) continue;
        deepl0::force_isa(isa);
        run(deepl0::isa_name(isa));
    }
}

inline const char* name_of(deepl0::DType t) {
    static const char* names[] = {"f32", "f64", "f16", "bf16"};
    return names[static_cast<int>(t)];
}

constexpr deepl0::DType kDTypes[] = {deepl0::DType::f32, deepl0::DType::f64, deepl0::DType::f16,
                                     deepl0::DType::bf16};

template <typename T>
double as_double(T x) {
    return deepl0::to_float(x);
}
template <>
inline double as_double(double x) {
    return x;
}
template <typename T>
T from_double(double x) {
    return deepl0::from_float<T>(static_cast<float>(x));
}
template <>
inline double from_double<double>(double x) {
    return x;
}

/// Calls f with a value of the element type of t.
template <typename F>
void with_type(deepl0::DType t, F f) {
    if (t == deepl0::DType::f32)
        f(float());
    else if (t == deepl0::DType::f64)
        f(double());
    else if (t == deepl0::DType::f16)
        f(deepl0::half());
    else
        f(deepl0::bfloat16());
}

/// Kinds of test rows: normal numbers, few distinct values, one value, zeros of both signs, NaN and
/// inf among them, subnormals, a few huge ones, ascending, descending, every magnitude.
constexpr int kFlavours = 10;

inline double draw(std::mt19937_64& rng, int flavour, int64_t j, int64_t p) {
    const double normal = std::normal_distribution<double>()(rng);
    const uint64_t die = rng() % 64;
    const double inf = std::numeric_limits<double>::infinity();
    switch (flavour) {
        case 0:
            return normal;
        case 1:
            return std::round(normal * 2) / 2;
        case 2:
            return die % 2 ? 1.5 : -1.5;
        case 3:
            return die % 2 ? 0.0 : -0.0;
        case 4:
            return die == 0  ? std::numeric_limits<double>::quiet_NaN()
                   : die < 4 ? (die % 2 ? inf : -inf)
                             : normal;
        case 5:
            return normal * 1e-40;
        case 6:
            return die < 2 ? normal * 1e37 : normal * 1e-3;
        case 7:
            return normal > 3 ? -double(j) : double(j);
        case 8:
            return double(p - j) / 7;
        default:
            return std::ldexp(normal, int(rng() % 60) - 30);
    }
}
