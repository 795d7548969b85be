#include <algorithm>

#include "batch_top_m.h"
#include "data.h"

using namespace deepl0;

namespace {

struct Case {
    DType dtype;
    int64_t rows, p, pad, m;  // m of the batch
    bool positive;
    int64_t parts;
    int flavour;
    uint64_t seed;
};

/// Candidates of a range of rows, in memory of exactly what they may take.
struct Part {
    int64_t begin, end;
    Exact<char> keys, scratch;
    Exact<int32_t> columns;
    Exact<int64_t> starts;

    Part(const Case& c, int64_t begin, int64_t end)
        : Part(c, begin, end, batch_capacity((end - begin) * c.p, c.m)) {}
    BatchPart view() const { return {keys.get(), columns.get(), starts.get()}; }
    int64_t rows() const { return end - begin; }
    int64_t count() const { return starts[rows()]; }

  private:
    Part(const Case& c, int64_t begin, int64_t end, int64_t capacity)
        : begin(begin),
          end(end),
          keys(capacity * int64_t(batch_key_bytes(c.dtype)), 0x5a),
          scratch(keys.n, 0x5a),
          columns(capacity),
          starts(end - begin + 1) {}
};

template <typename T>
void test_case(const char* isa, const Case& c) {
    std::mt19937_64 rng(c.seed);
    const int64_t stride = c.p + c.pad;
    Exact<T> u(c.rows * stride, from_double<T>(1e4)), values(c.m, u[0]);
    Exact<int64_t> indices(c.m), offsets(c.rows);
    std::vector<double> batch;
    for (int64_t i = 0; i < c.rows * c.p; ++i) {
        T& x = u[i / c.p * stride + i % c.p];
        x = from_double<T>(draw(rng, c.flavour, i, c.rows * c.p));
        const double wide = as_double(x);
        batch.push_back(c.positive && wide <= 0 ? 0.0 : wide);
    }
    const auto want = largest(batch, c.m);

    const BatchTopMKernels& kernels = batch_top_m_kernels();
    std::vector<Part> parts;
    for (int64_t i = 0; i < c.parts; ++i)
        parts.emplace_back(c, c.rows * i / c.parts, c.rows * (i + 1) / c.parts);
    const int64_t bytes = int64_t(batch_key_bytes(c.dtype));
    int64_t n = 0;
    for (const Part& part : parts) {
        kernels.collect(c.dtype, u.get(), stride, c.p, c.m, c.positive, part.begin, part.end,
                        part.view(), part.scratch.get());
        n += part.count();
        CHECK(part.count() + kBatchSlack <= part.columns.n, "%s: %ld candidates", isa,
              long(part.count()));
    }
    Exact<char> keys((n + kBatchSlack) * bytes);
    char* to = keys.get();
    for (const Part& part : parts) to = std::copy_n(part.keys.get(), part.count() * bytes, to);
    BatchCut cut = kernels.cut(c.dtype, keys.get(), n, c.m);
    int64_t begin = 0;
    for (const Part& part : parts) {
        const int64_t tied = kernels.tied(c.dtype, part.view(), part.rows(), cut.key);
        kernels.keep(c.dtype, part.view(), part.rows(), cut);
        cut.ties -= std::min(cut.ties, tied);
        CHECK(begin + part.count() <= c.m, "%s: too many", isa);
        if (begin + part.count() > c.m) return;
        kernels.write(c.dtype, u.get(), stride, c.positive, part.begin, part.end, part.view(),
                      begin, offsets.get(), values.get(), indices.get());
        begin += part.count();
    }
    bool right = begin == c.m;
    for (int64_t e = 0, r = 0; right && e < c.m; ++e) {
        while (r + 1 < c.rows && offsets[r + 1] <= e) ++r;
        const T* entry = u.get() + r * stride + indices[e];
        const T zero = from_double<T>(0.0);
        const bool gone = c.positive && as_double(*entry) <= 0;
        right = r * c.p + indices[e] == want[size_t(e)] && offsets[r] <= e &&
                !memcmp(&values[e], gone ? &zero : entry, sizeof(T));
    }
    CHECK(right, "%s %s rows=%ld p=%ld pad=%ld m=%ld positive=%d parts=%ld flavour=%d seed=%lu",
          isa, name_of(c.dtype), long(c.rows), long(c.p), long(c.pad), long(c.m), c.positive,
          long(c.parts), c.flavour, (unsigned long)c.seed);
}

void test_random(const char* isa) {
    std::mt19937_64 rng(3);
    const std::pair<int64_t, int64_t> shapes[] = {{1, 1},   {1, 5},    {3, 7},   {9, 16},  {5, 65},
                                                  {17, 33}, {40, 100}, {3, 777}, {2, 6000}};
    for (const auto& [rows, p] : shapes) {
        for (DType t : kDTypes) {
            for (int flavour = 0; flavour < kFlavours; ++flavour) {
                const int64_t all = rows * p;
                const int64_t ms[] = {1, all, 1 + int64_t(rng() % uint64_t(all)),
                                      std::max<int64_t>(1, all / 50)};
                const Case c{t,
                             rows,
                             p,
                             int64_t(rng() % 3),
                             ms[rng() % 4],
                             bool(rng() % 2),
                             1 + int64_t(rng() % uint64_t(std::min<int64_t>(rows, 4))),
                             flavour,
                             rng()};
                with_type(t, [&](auto x) { test_case<decltype(x)>(isa, c); });
            }
        }
    }
}

/// More entries than candidates fit: they are cut down on the way, in the middle of rows as well.
void test_long(const char* isa) {
    for (DType t : kDTypes)
        for (int flavour : {0, 1, 2, 4, 7, 8})
            for (int64_t m : {1, 300, 5000})
                for (bool positive : {false, true})
                    with_type(t, [&](auto x) {
                        using T = decltype(x);
                        test_case<T>(isa, {t, 3, 9001, 1, m, positive, 1, flavour, 11});
                        test_case<T>(isa, {t, 120, 250, 0, m, positive, 3, flavour, 12});
                    });
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        test_random(isa);
        test_long(isa);
    });
    return report("test_batch_top_m");
}
