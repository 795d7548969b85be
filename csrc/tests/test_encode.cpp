// The encoder's kernels against a plain loop in float64, stage by stage, and its paths against each
// other bit for bit: all of them add the terms of an entry in the same order.
#include "data.h"
#include "encode.h"

using namespace deepl0;

namespace {

/// How the pre-activations of the first stage are drawn: a flavour of draw(), or small integers.
constexpr int kIntegers = -1;

struct Case {
    int64_t rows, p, m, stages;
    bool per_step, save;
    int flavour;
    uint64_t seed;
    bool positive = false;
};

template <class T>
struct Problem {
    Case c;
    int64_t steps;  // matrices held
    Exact<T> wx, s, st;

    explicit Problem(const Case& c)
        : c(c),
          steps(c.per_step ? c.stages - 1 : 1),
          wx(c.rows * c.p),
          s(steps * c.p * c.p),
          st(steps * c.p * c.p) {
        std::mt19937_64 rng(c.seed);
        const bool whole = c.flavour == kIntegers;
        for (int64_t i = 0; i < wx.n; ++i)
            wx[i] = whole ? T(integer(rng, 4)) : T(draw(rng, c.flavour, i % c.p, c.p));
        for (int64_t k = 0; k < steps; ++k) {
            for (int64_t i = 0; i < c.p; ++i) {
                for (int64_t j = 0; j < c.p; ++j) {
                    const double v = whole ? integer(rng, 1) : draw(rng, 0, 0, 0) * 0.1;
                    s[(k * c.p + i) * c.p + j] = st[(k * c.p + j) * c.p + i] = T(v);
                }
            }
        }
    }
    StepMatrices<T> matrices(bool transposed) const {
        return {transposed ? st.get() : s.get(), c.per_step ? c.p * c.p : 0, transposed};
    }
};

/// Codes of all stages, in arrays of their exact size.
template <class T>
struct Codes {
    Exact<T> values, saved_values;
    Exact<int64_t> indices, saved_indices;
    TopMCodes<T> out;

    explicit Codes(const Case& c)
        : values(c.rows * c.m),
          saved_values(c.save ? (c.stages - 1) * c.rows * c.m : 0),
          indices(c.rows * c.m),
          saved_indices(saved_values.n) {
        const bool saved = saved_values.n > 0;
        out = {values.get(),
               indices.get(),
               saved ? saved_values.get() : values.get(),
               saved ? saved_indices.get() : indices.get(),
               c.m,
               c.stages,
               saved ? c.rows * c.m : 0,
               c.positive};
    }
    bool operator==(const Codes& o) const {
        return same(values.get(), o.values.get(), values.n) &&
               same(saved_values.get(), o.saved_values.get(), saved_values.n) &&
               std::equal(indices.get(), indices.get() + indices.n, o.indices.get()) &&
               std::equal(saved_indices.get(), saved_indices.get() + saved_indices.n,
                          o.saved_indices.get());
    }
    const T* values_of(int64_t k) const {
        return k + 1 == out.stages ? values.get() : saved_values.get() + k * out.saved_stride;
    }
    const int64_t* indices_of(int64_t k) const {
        return k + 1 == out.stages ? indices.get() : saved_indices.get() + k * out.saved_stride;
    }
};

enum class Path { rows, columns, panels, panels_of_transposed, kept_panels };

/// width: of the column panels; parts: of the rows, one call each.
template <class T>
Codes<T> encode(const Problem<T>& q, Path path, int64_t width = 16, int64_t parts = 1) {
    const Case& c = q.c;
    Codes<T> codes(c);
    const auto& kernels = encode_kernels<T>();
    Aligned workspace(encode_workspace<T>(c.p, c.m));
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t b = c.rows * part / parts, n = c.rows * (part + 1) / parts - b;
        if (n == 0) continue;  // the kernels see at least one row
        TopMCodes<T> out = codes.out;
        out.values += b * c.m;
        out.indices += b * c.m;
        out.saved_values += b * c.m;
        out.saved_indices += b * c.m;
        Exact<T> wx(n * c.p);
        std::copy_n(q.wx.get() + b * c.p, n * c.p, wx.get());
        if (path == Path::rows) {
            kernels.rows(wx.get(), n, c.p, q.matrices(true), out, workspace.get());
        } else if (path == Path::columns) {
            kernels.columns(wx.get(), n, c.p, q.matrices(false), out, workspace.get());
        } else {
            const bool kept = path == Path::kept_panels;
            const Exact<T> u(c.stages > 2 ? n * c.p : 0), panel(kept ? 0 : c.p * width);
            const Exact<T> packed(kept ? q.s.n : 0);
            for (int64_t k = 0; kept && k < q.steps; ++k)
                for (int64_t at = 0, b = 0; b < c.p; b += width)
                    for (int64_t j = 0; j < c.p; ++j)
                        for (int64_t i = b; i < std::min(c.p, b + width); ++i)
                            packed[k * c.p * c.p + at++] = q.st[(k * c.p + j) * c.p + i];
            StepMatrices<T> s = q.matrices(path != Path::panels);
            if (kept) s.data = packed.get();
            kernels.panels(wx.get(), n, c.p, s, width, out, u.get(), kept ? nullptr : panel.get(),
                           workspace.get());
        }
        if (path == Path::rows || path == Path::columns)
            CHECK(!memcmp(wx.get(), q.wx.get() + b * c.p, size_t(n * c.p) * sizeof(T)),
                  "W x was overwritten");
    }
    return codes;
}

int64_t g_decided = 0, g_rows = 0;

/// Every stage follows from the stage before: u = wx + S z within the bound of docs/numerics.md,
/// and the support is that of the exact u unless the m-th and the next are closer than the bound.
template <class T>
void check_stages(const char* isa, const Problem<T>& q, const Codes<T>& codes) {
    const Case& c = q.c;
    const bool whole = c.flavour == kIntegers;
    for (int64_t k = 0; k < c.stages; ++k) {
        for (int64_t r = 0; r < c.rows; ++r) {
            std::vector<double> u(static_cast<size_t>(c.p)), bound(u.size());
            for (int64_t i = 0; i < c.p; ++i) {
                double sum = double(q.wx[r * c.p + i]), magnitude = std::fabs(sum);
                for (int64_t j = 0; k > 0 && j < c.m; ++j) {
                    const int64_t at = codes.indices_of(k - 1)[r * c.m + j];
                    const int64_t step = c.per_step ? k - 1 : 0;
                    const double term = double(codes.values_of(k - 1)[r * c.m + j]) *
                                        double(q.s[(step * c.p + i) * c.p + at]);
                    sum += term;
                    magnitude += std::fabs(term);
                }
                u[size_t(i)] = c.positive && sum <= 0 ? 0 : sum;
                // A term below the normal numbers loses up to half of the least of them.
                const double least = double(std::numeric_limits<T>::denorm_min());
                bound[size_t(i)] =
                    whole || k == 0
                        ? 0
                        : double(c.m + 2) * (2 * unit_roundoff<T>() * magnitude + least);
            }
            const auto want = largest(u, c.m);
            const int64_t* got = codes.indices_of(k) + r * c.m;
            const T* value = codes.values_of(k) + r * c.m;
            // The margin between what is in and what is out.
            double weakest = INFINITY, strongest = 0;
            std::vector<char> in(size_t(c.p), 0);
            for (int64_t j : want) in[size_t(j)] = 1;
            for (int64_t j = 0; j < c.p; ++j) {
                const double a = std::fabs(u[size_t(j)]), e = bound[size_t(j)];
                if (in[size_t(j)])
                    weakest = std::min(weakest, std::isnan(a) ? INFINITY : a - e);
                else
                    strongest = std::max(strongest, std::isnan(a) ? INFINITY : a + e);
            }
            const bool decided = whole || k == 0 || c.m == c.p || weakest > strongest;
            g_decided += decided;
            ++g_rows;
            CHECK(!decided || std::equal(want.begin(), want.end(), got),
                  "%s f%d p=%ld m=%ld flavour=%d seed=%lu stage=%ld row=%ld: support", isa,
                  int(8 * sizeof(T)), long(c.p), long(c.m), c.flavour, (unsigned long)c.seed,
                  long(k), long(r));
            bool good = true;
            for (int64_t j = 0; j < c.m; ++j) {
                const int64_t i = got[j];
                good = good && i >= 0 && i < c.p && (j == 0 || got[j - 1] < i) &&
                       near(double(value[j]), u[size_t(i)], bound[size_t(i)]);
                // The first stage moves values, whatever they are.
                const T wx = q.wx[r * c.p + i], moved = c.positive && wx <= 0 ? T(0) : wx;
                if (k == 0) good = good && !memcmp(value + j, &moved, sizeof(T));
            }
            CHECK(good, "%s f%d p=%ld m=%ld flavour=%d seed=%lu stage=%ld row=%ld: values", isa,
                  int(8 * sizeof(T)), long(c.p), long(c.m), c.flavour, (unsigned long)c.seed,
                  long(k), long(r));
        }
    }
}

template <class T>
void test_case(const char* isa, const Case& c) {
    const Problem<T> q(c);
    const Codes<T> rows = encode(q, Path::rows);
    const char* where = "%s f%d rows=%ld p=%ld m=%ld stages=%ld flavour=%d seed=%lu";
    const auto equal = [&](const char* name, const Codes<T>& other) {
        char text[200];
        std::snprintf(text, sizeof text, where, isa, int(8 * sizeof(T)), long(c.rows), long(c.p),
                      long(c.m), long(c.stages), c.flavour, (unsigned long)c.seed);
        CHECK(other == rows, "%s: %s", text, name);
    };
    equal("columns", encode(q, Path::columns));
    equal("rows in parts", encode(q, Path::rows, 16, 3));
    for (int64_t width : {int64_t(1), int64_t(16), int64_t(48), c.p, c.p + 3}) {
        if (width > 1 || c.p < 40) equal("panels", encode(q, Path::panels, width));
        equal("panels of S'", encode(q, Path::panels_of_transposed, width));
        equal("kept panels", encode(q, Path::kept_panels, width));
    }
    equal("panels in parts", encode(q, Path::panels, 32, 2));
    if (c.save || c.stages == 1) {
        check_stages(isa, q, rows);
        Case without = c;
        without.save = false;
        const Problem<T> again(without);
        const Codes<T> last = encode(again, Path::rows);
        CHECK(same(last.values.get(), rows.values.get(), rows.values.n) &&
                  std::equal(rows.indices.get(), rows.indices.get() + rows.indices.n,
                             last.indices.get()),
              "%s p=%ld: without saving", isa, long(c.p));
        for (Path path : {Path::columns, Path::panels})
            CHECK(encode(again, path) == last, "%s p=%ld: a path without saving", isa, long(c.p));
    }
}

void test_both(const char* isa, Case c) {
    for (bool positive : {false, true}) {
        c.positive = positive;
        test_case<float>(isa, c);
        test_case<double>(isa, c);
    }
}

void test_paths(const char* isa) {
    std::mt19937_64 rng(3);
    for (int64_t p : {1, 2, 5, 15, 16, 17, 33, 64, 100, 129, 257}) {
        const int64_t some = std::min<int64_t>(p, 1 + int64_t(rng() % 40));
        for (int64_t m : {int64_t(0), some, p}) {
            for (int flavour : {kIntegers, 0}) {
                // Integers stay below 2^24 for so many stages.
                const int64_t stages = m > 40 ? 3 : 4;
                test_both(isa,
                          {p > 200 ? 3 : 5, p, m, stages, rng() % 2 == 0, true, flavour, rng()});
            }
        }
    }
    // What a careless batch may hold: ties, zeros of both signs, NaN, inf, subnormals, huge ones.
    for (int flavour = 1; flavour < kFlavours; ++flavour) {
        for (int64_t p : {19, 80}) {
            test_both(isa, {6, p, p / 4, 3, false, true, flavour, rng()});
        }
    }
    test_both(isa, {4, 30, 7, 1, false, false, 0, rng()});  // one stage: no S
    CHECK(g_decided * 100 >= g_rows * 90, "%s: only %ld of %ld supports have a margin", isa,
          long(g_decided), long(g_rows));
}

/// Selection alone, on every flavour, into the arrays of any stage.
template <class T>
void test_select(const char* isa) {
    std::mt19937_64 rng(11);
    for (int64_t p : {1, 7, 31, 64, 65, 200, 513, 1500}) {
        for (int flavour = 0; flavour < kFlavours; ++flavour) {
            for (int64_t m : {int64_t(0), p / 3, std::min<int64_t>(p, 32), p}) {
                const Case c{3, p, m, 3, false, true, flavour, rng()};
                Exact<T> u(c.rows * p);
                for (int64_t i = 0; i < u.n; ++i) u[i] = T(draw(rng, flavour, i % p, p));
                Codes<T> codes(c);
                Aligned workspace(encode_workspace<T>(p, m));
                const int64_t stage = int64_t(rng() % 3);
                encode_kernels<T>().select(u.get(), c.rows, p, codes.out, stage, workspace.get());
                bool good = true;
                for (int64_t r = 0; r < c.rows; ++r) {
                    std::vector<double> row(u.get() + r * p, u.get() + (r + 1) * p);
                    const auto want = largest(row, m);
                    const int64_t* got = codes.indices_of(stage) + r * m;
                    good = good && std::equal(want.begin(), want.end(), got);
                    for (int64_t j = 0; good && j < m; ++j)
                        good = !memcmp(codes.values_of(stage) + r * m + j, &u[r * p + got[j]],
                                       sizeof(T));
                }
                CHECK(good, "%s select f%d p=%ld m=%ld flavour=%d", isa, int(8 * sizeof(T)),
                      long(p), long(m), flavour);
            }
        }
    }
}

template <class T>
void test_transpose(const char* isa) {
    std::mt19937_64 rng(13);
    for (int64_t rows : {1, 3, 16, 33, 70}) {
        for (int64_t cols : {1, 5, 16, 64, 67, 130}) {
            Exact<T> s(rows * cols), out(rows * cols, T(-1));
            for (int64_t i = 0; i < s.n; ++i) s[i] = T(i);
            const int64_t begin = int64_t(rng() % uint64_t(rows + 1));
            const int64_t end = begin + int64_t(rng() % uint64_t(rows - begin + 1));
            encode_kernels<T>().transpose(s.get(), rows, cols, begin, end, out.get());
            bool good = true;
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < cols; ++j)
                    good = good &&
                           out[j * rows + i] == (begin <= i && i < end ? s[i * cols + j] : T(-1));
            CHECK(good, "%s transpose f%d %ld x %ld, rows %ld to %ld", isa, int(8 * sizeof(T)),
                  long(rows), long(cols), long(begin), long(end));
        }
    }
}

template <class T>
void test_product(const char* isa) {
    std::mt19937_64 rng(17);
    for (int64_t n : {0, 1, 7, 16, 31, 64, 83, 129}) {
        for (int64_t units : {1, 7, 8, 9, 24, 37}) {
            for (int pad = 0; pad < 3; ++pad) {
                for (bool whole : {true, false}) {
                    const int64_t rows = 1 + int64_t(rng() % 4), ldx = n + pad, ldw = n + 2 * pad;
                    const int64_t ldo = units + pad, ldb = pad == 2 ? 0 : ldo;
                    // The last row ends with its last entry: nothing beyond may be read.
                    Exact<T> x((rows - 1) * ldx + n), w((units - 1) * ldw + n);
                    Exact<T> base((rows - 1) * ldo + units), out((rows - 1) * ldo + units);
                    const auto fill = [&](Exact<T>& t) {
                        for (int64_t i = 0; i < t.n; ++i)
                            t[i] = T(whole ? integer(rng, 9) : draw(rng, 0, 0, 0));
                    };
                    for (auto* t : {&x, &w, &base}) fill(*t);
                    const bool based = rng() % 2;
                    encode_kernels<T>().product(x.get(), ldx, rows, w.get(), ldw, units, n,
                                                based ? base.get() : nullptr, ldb, out.get(), ldo);
                    bool good = true;
                    for (int64_t r = 0; r < rows; ++r) {
                        for (int64_t i = 0; i < units; ++i) {
                            double sum = based ? double(base[r * ldb + i]) : 0;
                            double magnitude = std::fabs(sum);
                            for (int64_t k = 0; k < n; ++k) {
                                const double t = double(x[r * ldx + k]) * double(w[i * ldw + k]);
                                sum += t;
                                magnitude += std::fabs(t);
                            }
                            const double bound =
                                whole ? 0 : double(n + 2) * 2 * unit_roundoff<T>() * magnitude;
                            good = good && near(double(out[r * ldo + i]), sum, bound);
                        }
                    }
                    CHECK(good, "%s product f%d rows=%ld units=%ld n=%ld pad=%d", isa,
                          int(8 * sizeof(T)), long(rows), long(units), long(n), pad);
                }
            }
        }
    }
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        test_paths(isa);
        test_select<float>(isa);
        test_select<double>(isa);
        test_transpose<float>(isa);
        test_transpose<double>(isa);
        test_product<float>(isa);
        test_product<double>(isa);
    });
    return report("test_encode");
}
