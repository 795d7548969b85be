#include <algorithm>
#include <numeric>

#include "check.h"
#include "top_m.h"

using namespace deepl0;

namespace {

/// n elements in their own allocation, so that the address sanitizer sees any access beyond;
/// shifted off the allocator's alignment by `shift` elements, and filled with rubbish.
template <typename T>
struct Array {
    std::vector<T> data;
    T* at;
    Array(int64_t n, int shift) : data(size_t(n + shift)) {
        if (!data.empty()) memset(static_cast<void*>(data.data()), 0xa5, data.size() * sizeof(T));
        at = data.data() + shift;
    }
};

double part(double u, bool positive) { return positive && u <= 0 ? 0 : u; }

std::vector<int64_t> oracle(const std::vector<double>& row, int64_t m) {
    std::vector<int64_t> order(row.size());
    std::iota(order.begin(), order.end(), 0);
    const auto key = [&](int64_t j) {
        const double a = std::fabs(row[size_t(j)]);
        return std::isnan(a)   ? std::numeric_limits<double>::infinity()
               : std::isinf(a) ? std::numeric_limits<double>::max()
                               : a / 2;
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return key(a) > key(b); });
    order.resize(size_t(m));
    std::sort(order.begin(), order.end());
    return order;
}

struct Case {
    DType dtype;
    int64_t rows, p, m, pad;
    int shift, flavour;
    uint64_t seed;
    bool positive;
};

template <typename T>
void test_case(const char* isa, const Case& c) {
    std::mt19937_64 rng(c.seed);
    const int64_t p = c.p, m = c.m, stride = p + c.pad, bytes = (p + 7) / 8;
    Array<T> u(c.rows * stride, c.shift), out(c.rows * stride, c.shift), again(c.rows * p, c.shift);
    Array<T> values(c.rows * m, c.shift), dense(c.rows * p, c.shift);
    Array<int64_t> indices(c.rows * m, 0);
    Array<uint8_t> mask(c.rows * bytes, c.shift);
    Array<char> ws(int64_t(top_m_workspace_bytes(c.dtype, p, m)), 0);
    Array<char> seen(int64_t(unpool_workspace_bytes(p)), 0);
    for (int64_t i = 0; i < c.rows * p; ++i) {
        u.at[i / p * stride + i % p] = from_double<T>(draw(rng, c.flavour, i % p, p));
    }
    const std::vector<T> before(u.at, u.at + c.rows * stride);

    const int64_t half_way = c.rows / 2;
    for (int64_t part = 0; part < 2; ++part) {
        const int64_t b = part ? half_way : 0, e = part ? c.rows : half_way;
        top_m_kernels().top_m(c.dtype, u.at, stride, p, m, c.positive, values.at, indices.at, b, e,
                              ws.at);
        top_m_kernels().keep_top_m(c.dtype, u.at, stride, p, m, c.positive, out.at, stride, mask.at,
                                   b, e, ws.at);
        top_m_kernels().apply_mask(c.dtype, u.at, stride, mask.at, p, again.at, p, b, e);
        CHECK(unpool(c.dtype, values.at, indices.at, m, p, dense.at, b, e, seen.at) == -1,
              "unpool");
    }
    const T nothing = from_double<T>(0.0);
    for (int64_t r = 0; r < c.rows; ++r) {
        std::vector<double> row(size_t(p), 0.0);
        for (int64_t j = 0; j < p; ++j)
            row[size_t(j)] = part(as_double(u.at[r * stride + j]), c.positive);
        const auto want = oracle(row, m);
        bool chosen = true, same = true;
        std::vector<char> kept(size_t(bytes * 8), 0);
        for (int64_t i = 0; i < m; ++i) {
            const int64_t j = want[size_t(i)];
            // Of nonnegative codes a zero is chosen, but not kept.
            kept[size_t(j)] = !(c.positive && row[size_t(j)] == 0);
            const T* entry = kept[size_t(j)] ? u.at + r * stride + j : &nothing;
            chosen = chosen && indices.at[r * m + i] == j &&
                     !memcmp(values.at + r * m + i, entry, sizeof(T));
        }
        for (int64_t j = 0; j < bytes * 8; ++j) {
            same = same && (mask.at[r * bytes + j / 8] >> (j % 8) & 1) == kept[size_t(j)];
            if (j >= p) continue;
            const T* entry = kept[size_t(j)] ? u.at + r * stride + j : &nothing;
            same = same && !memcmp(out.at + r * stride + j, entry, sizeof(T)) &&
                   !memcmp(again.at + r * p + j, entry, sizeof(T)) &&
                   !memcmp(dense.at + r * p + j, entry, sizeof(T));
        }
        CHECK(chosen && same, "%s %s %s p=%ld m=%ld pad=%ld shift=%d flavour=%d seed=%lu row=%ld",
              isa, c.positive ? "positive" : "signed", name_of(c.dtype), long(p), long(m),
              long(c.pad), c.shift, c.flavour, (unsigned long)c.seed, long(r));
        for (int64_t j = p; j < stride; ++j) {
            uint8_t rubbish[sizeof(T)];
            memset(rubbish, 0xa5, sizeof(T));
            CHECK(!memcmp(out.at + r * stride + j, rubbish, sizeof(T)), "wrote between the rows");
        }
    }
    top_m_kernels().keep_top_m(c.dtype, u.at, stride, p, m, c.positive, u.at, stride, mask.at, 0,
                               c.rows, ws.at);
    for (int64_t r = 0; r < c.rows; ++r) {
        CHECK(!memcmp(u.at + r * stride, out.at + r * stride, size_t(p) * sizeof(T)), "in place");
        memcpy(u.at + r * stride, &before[size_t(r * stride)], size_t(p) * sizeof(T));
    }
    top_m_kernels().apply_mask(c.dtype, u.at, stride, mask.at, p, u.at, stride, 0, c.rows);
    for (int64_t r = 0; r < c.rows; ++r) {
        CHECK(!memcmp(u.at + r * stride, out.at + r * stride, size_t(p) * sizeof(T)), "in place");
    }
}

void test_random(const char* isa) {
    std::mt19937_64 rng(7);
    const int64_t sizes[] = {1,   2,   7,   8,   15,  16,   17,   31,  33,  63,
                             64,  65,  100, 127, 128, 129,  200,  255, 256, 257,
                             300, 511, 512, 513, 777, 1024, 1500, 4096};
    for (int64_t p : sizes) {
        for (DType t : kDTypes) {
            for (int flavour = 0; flavour < kFlavours; ++flavour) {
                const int64_t ms[] = {int64_t(rng() % uint64_t(p + 1)),
                                      std::min<int64_t>(p, 1 + int64_t(rng() % 110)),
                                      std::min<int64_t>(p, 32), rng() % 4 ? p / 2 : p};
                Case c{t,
                       p > 1000 ? 1 : 3,
                       p,
                       ms[rng() % 4],
                       int64_t(rng() % 3),
                       int(rng() % 4),
                       flavour,
                       rng(),
                       rng() % 3 == 0};
                if (rng() % 8 == 0) c.m = rng() % 2 ? 0 : p;
                with_type(t, [&](auto x) { test_case<decltype(x)>(isa, c); });
            }
        }
    }
    for (int64_t m : {1, 32, 3000}) {
        with_type(DType::f32, [&](auto x) {
            for (bool positive : {false, true}) {
                test_case<decltype(x)>(isa, {DType::f32, 1, 40001, m, 0, 1, 0, 3, positive});
                test_case<decltype(x)>(isa, {DType::f32, 1, 40001, m, 0, 1, 7, 3, positive});
            }
        });
    }
    with_type(DType::f32, [&](auto x) {
        test_case<decltype(x)>(isa, {DType::f32, 0, 16, 4, 0, 0, 0, 3, false});
    });
}

void test_unpool_errors() {
    const float values[6] = {1, 2, 3, 4, 5, 6};
    std::vector<char> ws(unpool_workspace_bytes(70));
    std::vector<float> out(140);
    const auto run = [&](std::vector<int64_t> idx) {
        return unpool(DType::f32, values, idx.data(), 3, 70, out.data(), 0, 2, ws.data());
    };
    CHECK(run({2, 1, 69, 0, 5, 4}) == -1, "any order");
    CHECK(out[2] == 1 && out[1] == 2 && out[69] == 3 && out[70] == 4 && out[74] == 6, "places");
    CHECK(run({1, 2, 3, 4, 70, 5}) == 4, "too large");
    CHECK(run({1, 2, 3, 4, -1, 5}) == 4, "negative");
    CHECK(run({1, 2, 1, 0, 1, 2}) == 2, "repeated");
    CHECK(run({1, 2, 3, 6, 6, 7}) == 4, "repeated in the second row");
    CHECK(run({5, 2, 3, 5, 2, 3}) == -1, "rows do not share");
    CHECK(run({INT64_MIN, 2, 3, 5, 2, 3}) == 0, "first");
}

}  // namespace

int main() {
    for_each_isa(test_random);
    test_unpool_errors();
    return report("test_top_m");
}
