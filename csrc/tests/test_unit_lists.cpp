// Unit lists against naive ones, and the sums over them against plain loops. The data are small
// integers, so every sum is exact in any order.
#include "data.h"
#include "unit_lists.h"

using namespace deepl0;

namespace {

constexpr double kRubbish = -12345;

/// Sparse rows with m entries each, or with lengths that vary.
template <class T>
struct Rows {
    int64_t count, p, m;
    std::vector<int32_t> start_of;  // always filled in
    Exact<int32_t> index, start;
    Exact<T> value;
    bool varying;

    Rows(std::mt19937_64& rng, int64_t count, int64_t p, int64_t m, bool varying)
        : Rows(rng, lengths(rng, count, m, varying), p, m, varying) {}

    SparseRows<T> view() const {
        return {index.get(), value.get(), varying ? start.get() : nullptr, varying ? 0 : m};
    }
    int64_t entries() const { return index.n; }

  private:
    Rows(std::mt19937_64& rng, const std::vector<int32_t>& at, int64_t p, int64_t m, bool varying)
        : count(int64_t(at.size()) - 1),
          p(p),
          m(m),
          start_of(at),
          index(at.back()),
          start(int64_t(at.size())),
          value(at.back()),
          varying(varying) {
        std::copy(at.begin(), at.end(), start.get());
        for (int64_t r = 0; r < count; ++r) {
            auto chosen = draw_indices(rng, p, at[size_t(r + 1)] - at[size_t(r)]);
            // Only distinct, not ascending: totals over stages are in the order of use.
            if (varying) std::shuffle(chosen.begin(), chosen.end(), rng);
            std::copy(chosen.begin(), chosen.end(), index.get() + at[size_t(r)]);
        }
        for (int64_t e = 0; e < value.n; ++e) value[e] = T(integer(rng, 5));
    }
    static std::vector<int32_t> lengths(std::mt19937_64& rng, int64_t count, int64_t m,
                                        bool varying) {
        std::vector<int32_t> at{0};
        for (int64_t r = 0; r < count; ++r)
            at.push_back(at.back() + int32_t(varying ? rng() % uint64_t(m + 1) : uint64_t(m)));
        return at;
    }
};

template <class T>
struct Grouped {
    Exact<int32_t> start, row, place;
    Exact<T> coefficient;
    bool with_place;
    Grouped(const Rows<T>& z, bool with_place)
        : start(z.p + 1),
          row(z.entries()),
          place(with_place ? z.entries() : 0),
          coefficient(z.entries()),
          with_place(with_place) {
        unit_kernels<T>().group(z.view(), z.count, z.p, view());
    }
    UnitLists<T> view() const {
        return {start.get(), row.get(), coefficient.get(), with_place ? place.get() : nullptr};
    }
};

template <class T>
void fill(std::mt19937_64& rng, Exact<T>& t) {
    for (int64_t i = 0; i < t.n; ++i) t[i] = T(integer(rng, 6));
}

struct Shape {
    int64_t rows, p, m, other;
    bool varying;
};

template <class T>
void test_shape(const char* isa, const Shape& c, uint64_t seed) {
    char where[160];
    std::snprintf(where, sizeof where, "%s f%d rows=%ld p=%ld m=%ld other=%ld varying=%d", isa,
                  int(8 * sizeof(T)), long(c.rows), long(c.p), long(c.m), long(c.other), c.varying);
    std::mt19937_64 rng(seed);
    const int64_t p = c.p;
    const auto& kernels = unit_kernels<T>();
    const Rows<T> z(rng, c.rows, p, c.m, c.varying), at(rng, c.rows, p, c.other, !c.varying);
    const Grouped<T> lists(z, true), bare(z, false);

    // Unit by unit, rows ascend, every entry at its place.
    int64_t k = 0;
    bool good = lists.start[0] == 0;
    for (int64_t i = 0; i < p; ++i) {
        good = good && lists.start[i] == k;
        for (int64_t r = 0; r < c.rows; ++r) {
            for (int64_t e = z.start_of[size_t(r)]; e < z.start_of[size_t(r + 1)]; ++e) {
                if (z.index[e] != i) continue;
                good = good && lists.row[k] == r && lists.place[k] == e &&
                       lists.coefficient[k] == z.value[e];
                ++k;
            }
        }
    }
    CHECK(good && k == z.entries() && lists.start[p] == k, "%s: group", where);
    CHECK(std::equal(lists.start.get(), lists.start.get() + p + 1, bare.start.get()) &&
              std::equal(lists.row.get(), lists.row.get() + k, bare.row.get()) &&
              same(lists.coefficient.get(), bare.coefficient.get(), k),
          "%s: group without places", where);

    // The product with s on the support `at`, added to what is there; only the first units.
    const int64_t units = p - int64_t(rng() % 3) % p, ld = p + 1;
    Exact<T> s((units - 1) * ld + p), on(at.entries()), want(at.entries());
    fill(rng, s);
    fill(rng, on);
    std::copy_n(on.get(), on.n, want.get());
    kernels.product_on_support(lists.view(), units, s.get(), ld, at.view(), on.get());
    for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t e = at.start_of[size_t(r)]; e < at.start_of[size_t(r + 1)]; ++e)
            for (int64_t l = z.start_of[size_t(r)]; l < z.start_of[size_t(r + 1)]; ++l)
                if (z.index[l] < units) want[e] += z.value[l] * s[z.index[l] * ld + at.index[e]];
    CHECK(same(on.get(), want.get(), on.n), "%s: product_on_support", where);

    // The same from the other side.
    Exact<T> st(p * p), dots(z.entries(), T(kRubbish)), want_dots(z.entries(), T(0));
    fill(rng, st);
    kernels.product_on_lists(lists.view(), p, st.get(), at.view(), dots.get());
    for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t l = z.start_of[size_t(r)]; l < z.start_of[size_t(r + 1)]; ++l)
            for (int64_t e = at.start_of[size_t(r)]; e < at.start_of[size_t(r + 1)]; ++e)
                want_dots[l] += at.value[e] * st[z.index[l] * p + at.index[e]];
    CHECK(same(dots.get(), want_dots.get(), dots.n), "%s: product_on_lists", where);

    // Outer products for a range of units; the other rows of out stay.
    const int64_t begin = int64_t(rng() % uint64_t(p + 1));
    const int64_t end = begin + int64_t(rng() % uint64_t(p - begin + 1));
    Exact<T> outer((p - 1) * ld + p), want_outer(outer.n);
    fill(rng, outer);
    std::copy_n(outer.get(), outer.n, want_outer.get());
    kernels.outer(lists.view(), begin, end, at.view(), outer.get(), ld);
    for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t l = z.start_of[size_t(r)]; l < z.start_of[size_t(r + 1)]; ++l)
            for (int64_t e = at.start_of[size_t(r)]; e < at.start_of[size_t(r + 1)]; ++e)
                if (begin <= z.index[l] && z.index[l] < end)
                    want_outer[z.index[l] * ld + at.index[e]] += z.value[l] * at.value[e];
    CHECK(same(outer.get(), want_outer.get(), outer.n), "%s: outer", where);

    // Sums of dense rows per unit, and of the rows of w per sparse row.
    for (int64_t n : {int64_t(1), int64_t(3), c.other + 5, int64_t(64), int64_t(130)}) {
        const int64_t ldx = n + int64_t(rng() % 3), ldo = n + 2;
        Exact<T> x((c.rows - 1) * ldx + n), combined(p * n), want_combined(p * n);
        fill(rng, x);
        fill(rng, combined);
        std::copy_n(combined.get(), combined.n, want_combined.get());
        kernels.combine(lists.view(), begin, end, x.get(), ldx, n, combined.get());
        for (int64_t r = 0; r < c.rows; ++r)
            for (int64_t l = z.start_of[size_t(r)]; l < z.start_of[size_t(r + 1)]; ++l)
                for (int64_t i = 0; i < n; ++i)
                    if (begin <= z.index[l] && z.index[l] < end)
                        want_combined[z.index[l] * n + i] += z.value[l] * x[r * ldx + i];
        CHECK(same(combined.get(), want_combined.get(), p * n), "%s n=%ld: combine", where,
              long(n));

        Exact<T> w((p - 1) * ldx + n), base((c.rows - 1) * ldo + n);
        fill(rng, w);
        fill(rng, base);
        for (int how = 0; how < 3; ++how) {  // no base, a base, the output itself
            Exact<T> out(base.n, T(kRubbish)), want_out(base.n, T(kRubbish));
            if (how == 2) std::copy_n(base.get(), base.n, out.get());
            kernels.gather(z.view(), c.rows, w.get(), ldx, n,
                           how == 0   ? nullptr
                           : how == 1 ? base.get()
                                      : out.get(),
                           out.get(), ldo);
            if (how == 2) std::copy_n(base.get(), base.n, want_out.get());
            for (int64_t r = 0; r < c.rows; ++r) {
                for (int64_t i = 0; i < n; ++i) {
                    T& sum = want_out[r * ldo + i];
                    sum = how == 0 ? T(0) : base[r * ldo + i];
                    for (int64_t l = z.start_of[size_t(r)]; l < z.start_of[size_t(r + 1)]; ++l)
                        sum += z.value[l] * w[z.index[l] * ldx + i];
                }
            }
            CHECK(same(out.get(), want_out.get(), out.n), "%s n=%ld how=%d: gather", where, long(n),
                  how);
            // The same of w transposed.
            const Exact<T> transposed(n * c.p);
            for (int64_t i = 0; i < n; ++i)
                for (int64_t j = 0; j < c.p; ++j) transposed[i * c.p + j] = w[j * ldx + i];
            std::fill_n(out.get(), out.n, T(kRubbish));
            if (how == 2) std::copy_n(base.get(), base.n, out.get());
            kernels.gather_columns(z.view(), c.rows, transposed.get(), c.p, n,
                                   how == 0   ? nullptr
                                   : how == 1 ? base.get()
                                              : out.get(),
                                   out.get(), ldo);
            CHECK(same(out.get(), want_out.get(), out.n), "%s n=%ld how=%d: gather_columns", where,
                  long(n), how);
        }
    }
}

template <class T>
void test_compress(const char* isa) {
    std::mt19937_64 rng(23);
    for (int64_t p : {0, 1, 7, 15, 16, 17, 63, 64, 200}) {
        for (int flavour = 0; flavour < kFlavours; ++flavour) {
            for (uint64_t zeros : {0, 3, 10}) {  // of ten
                Exact<T> z(p), value(p + 16);
                Exact<int32_t> index(p + 16);
                for (int64_t i = 0; i < p; ++i) {
                    z[i] = T(draw(rng, flavour, i, p));
                    if (rng() % 10 < zeros) z[i] = rng() % 2 ? T(0.0) : T(-0.0);
                }
                const int64_t n = unit_kernels<T>().compress(z.get(), p, index.get(), value.get());
                int64_t k = 0;
                bool good = true;
                for (int64_t i = 0; i < p; ++i) {
                    if (z[i] == T(0)) continue;  // NaN is not 0
                    good = good && k < n && index[k] == i &&
                           !memcmp(value.get() + k, z.get() + i, sizeof(T));
                    ++k;
                }
                CHECK(good && k == n, "%s compress f%d p=%ld flavour=%d", isa, int(8 * sizeof(T)),
                      long(p), flavour);
            }
        }
    }
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        uint64_t seed = 29;
        for (int64_t p : {1, 2, 9, 16, 33, 100}) {
            for (int64_t m : {int64_t(0), std::min<int64_t>(p, 3), p}) {
                for (bool varying : {false, true}) {
                    const Shape c{int64_t(1 + seed % 9), p, m, std::min<int64_t>(p, 21), varying};
                    test_shape<float>(isa, c, ++seed);
                    test_shape<double>(isa, c, seed);
                }
            }
        }
        test_compress<float>(isa);
        test_compress<double>(isa);
    });
    return report("test_unit_lists");
}
