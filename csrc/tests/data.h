// Data of the tests of the sparse kernels: exact arrays, values whose sums are exact in any order,
// codes, and the comparison of numbers.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "check.h"

/// n elements in their own allocation, so that the address sanitizer sees any access beyond.
template <class T>
struct Exact {
    std::unique_ptr<T[]> data;
    int64_t n;
    explicit Exact(int64_t n, T value = T(77)) : data(new T[size_t(n)]), n(n) {
        std::fill_n(data.get(), n, value);
    }
    T* get() const { return data.get(); }
    T& operator[](int64_t i) const { return data[size_t(i)]; }
};

/// A block of bytes aligned to cache lines, filled with rubbish.
struct Aligned {
    explicit Aligned(int64_t bytes)
        : data(std::aligned_alloc(64, size_t(bytes + 64) / 64 * 64), std::free) {
        memset(data.get(), 0xa5, size_t(bytes));
    }
    void* get() const { return data.get(); }
    std::unique_ptr<void, decltype(&std::free)> data;
};

/// Small integers: their products and sums are exact, so every order of summation gives the same
/// number, and ties are frequent.
inline double integer(std::mt19937_64& rng, int most) {
    return double(int(rng() % uint64_t(2 * most + 1)) - most);
}

/// m of the p indices, ascending.
inline std::vector<int64_t> draw_indices(std::mt19937_64& rng, int64_t p, int64_t m) {
    std::vector<int64_t> all(static_cast<size_t>(p));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), rng);
    all.resize(size_t(m));
    std::sort(all.begin(), all.end());
    return all;
}

template <class T>
double unit_roundoff() {
    return std::numeric_limits<T>::epsilon() / 2;
}

/// Equal, both NaN, or apart by no more than `bound`.
inline bool near(double got, double want, double bound) {
    return (std::isnan(got) && std::isnan(want)) || got == want || std::fabs(got - want) <= bound;
}
template <class T>
bool same(const T* a, const T* b, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (!near(double(a[i]), double(b[i]), 0)) return false;
    return true;
}

/// The m entries of largest |u|: every NaN above inf, ties to the lowest index; ascending.
inline std::vector<int64_t> largest(const std::vector<double>& u, int64_t m) {
    std::vector<int64_t> order(u.size());
    std::iota(order.begin(), order.end(), 0);
    const auto rank = [&](int64_t j) {
        const double a = std::fabs(u[size_t(j)]);
        return std::make_pair(std::isnan(a), std::isnan(a) ? 0.0 : a);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return rank(a) > rank(b); });
    order.resize(size_t(m));
    std::sort(order.begin(), order.end());
    return order;
}
