#include <algorithm>
#include <cfloat>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "check.h"
#include "screen.h"

using namespace deepl0;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// The dot product that defines u, one operation at a time.
float dot(const float* x, const float* w, int64_t n, bool fused) {
    float lane[16] = {};
    for (int64_t k = 0; k < n; ++k) {
        float& a = lane[k % 16];
        if (fused) {
            a = std::fma(x[k], w[k], a);
        } else {
            const volatile float product = x[k] * w[k];
            a = product + a;
        }
    }
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

uint32_t key(float v) { return std::isnan(v) ? 0x7f800001u : bit_cast<uint32_t>(v) & 0x7fffffffu; }

float round_bf16(float v) { return to_float(to_bfloat16(v)); }

struct Block {
    explicit Block(int64_t bytes)
        : at(std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64), std::free) {
        memset(at.get(), 0xa5, size_t(bytes));
    }
    void* get() const { return at.get(); }
    std::unique_ptr<void, decltype(&std::free)> at;
};

struct Data {
    int64_t rows, n, p, m, ldx, ldw, z_m = 0;
    std::vector<float> x, w, bias, z;  // bias and z may be empty
    std::vector<int64_t> z_indices;
    bool positive = false;

    Data(int64_t rows, int64_t n, int64_t p, int64_t m, int64_t pad = 0)
        : rows(rows), n(n), p(p), m(m), ldx(n + pad), ldw(n + 2 * pad) {
        x.assign(size_t(rows * ldx), NAN);
        w.assign(size_t(p * ldw), NAN);
    }
    float& X(int64_t r, int64_t k) { return x[size_t(r * ldx + k)]; }
    float& W(int64_t i, int64_t k) { return w[size_t(i * ldw + k)]; }

    /// u of a unit, from its dot product.
    template <class T>
    T rest(int64_t row, int64_t i, T u) const {
        if (!bias.empty()) u += bias[size_t(i)];
        for (int64_t j = row * z_m; j < (row + 1) * z_m; ++j)
            if (z_indices[size_t(j)] == i) u += z[size_t(j)];
        return u;
    }
};

const char* const kKinds[] = {"float32", "bfloat16 vectors", "bfloat16 tiles", "int8 vectors"};
constexpr ScreenKind kAllKinds[] = {ScreenKind::float32, ScreenKind::bfloat16_vectors,
                                    ScreenKind::bfloat16_tiles, ScreenKind::int8_vectors};

struct Result {
    std::vector<float> values;
    std::vector<int64_t> indices;
    ScreenCounts counts;
};

struct Setup {
    Block packed;
    Result out;
    ScreenProblem q{};

    Setup(const Data& d, ScreenKind kind, float scale)
        : packed(screen_packed_bytes(kind, d.p, d.n)) {
        out.values.assign(size_t(d.rows * d.m), -1.0f);
        out.indices.assign(size_t(d.rows * d.m), -1);
        q.kind = kind;
        q.x = d.x.data();
        q.ldx = d.ldx;
        q.w = d.w.data();
        q.ldw = d.ldw;
        q.n = d.n;
        q.p = d.p;
        q.m = d.m;
        q.packed = packed.get();
        q.values = out.values.data();
        q.indices = out.indices.data();
        q.positive = d.positive;
        q.bias = d.bias.empty() ? nullptr : d.bias.data();
        q.z_values = d.z.data();
        q.z_indices = d.z_indices.data();
        q.z_m = d.z_m;
        q.bound_scale = scale;
        const int64_t half = d.p / 2 / kScreenGroup * kScreenGroup;
        screen_kernels().pack(kind, q.w, q.ldw, q.bias, q.p, q.n, half, q.p, packed.get());
        screen_kernels().pack(kind, q.w, q.ldw, q.bias, q.p, q.n, 0, half, packed.get());
    }
    void run(int64_t begin, int64_t end) {
        const Block workspace(screen_workspace_bytes(q.kind, end - begin, q.p, q.n, q.m, q.z_m));
        screen_kernels().top_m(q, begin, end, workspace.get(), &out.counts);
    }
};

Result screen(const Data& d, ScreenKind kind, int64_t split, float scale = 1.0f) {
    Setup s(d, kind, scale);
    s.run(0, split);
    s.run(split, d.rows);
    return s.out;
}

Result oracle(const Data& d, bool fused) {
    Result r;
    std::vector<float> u(static_cast<size_t>(d.p));
    std::vector<int64_t> order(static_cast<size_t>(d.p));
    for (int64_t row = 0; row < d.rows; ++row) {
        for (int64_t i = 0; i < d.p; ++i) {
            float& v = u[size_t(i)];
            v = dot(&d.x[size_t(row * d.ldx)], &d.w[size_t(i * d.ldw)], d.n, fused);
            v = d.rest(row, i, v);
            if (d.positive && v <= 0) v = 0;
        }
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            return key(u[size_t(a)]) > key(u[size_t(b)]);
        });
        std::sort(order.begin(), order.begin() + d.m);
        for (int64_t j = 0; j < d.m; ++j) {
            r.indices.push_back(order[size_t(j)]);
            r.values.push_back(u[size_t(order[size_t(j)])]);
        }
    }
    return r;
}

/// Every value bit for bit; of NaNs only that they are.
bool equal(const Result& a, const Result& b) {
    if (a.indices != b.indices) return false;
    for (size_t j = 0; j < a.values.size(); ++j) {
        const bool nan = std::isnan(a.values[j]) && std::isnan(b.values[j]);
        if (!nan && bit_cast<uint32_t>(a.values[j]) != bit_cast<uint32_t>(b.values[j]))
            return false;
    }
    return true;
}

constexpr int kData = 20;

void fill(Data& d, int what, std::mt19937_64& rng) {
    std::normal_distribution<float> normal;
    const auto pick = [&](int64_t n) { return int64_t(rng() % uint64_t(n)); };
    float sx = 1, sw = 1;
    if (what == 1) sx = 1e-19f, sw = 1e-19f;  // products subnormal
    if (what == 2) sx = 1e18f, sw = 1e17f;
    if (what == 3) sx = 1e30f, sw = 1e-30f;  // rows too large to screen
    if (what == 4) sx = 1e-41f;              // subnormal rows
    const float mean_x = what == 5 || what == 16 ? 5 : 0, mean_w = what == 5 || what == 17 ? 5 : 0;
    for (int64_t r = 0; r < d.rows; ++r)
        for (int64_t k = 0; k < d.n; ++k) d.X(r, k) = sx * (normal(rng) + mean_x);
    for (int64_t i = 0; i < d.p; ++i)
        for (int64_t k = 0; k < d.n; ++k) d.W(i, k) = sw * (normal(rng) + mean_w);
    for (int64_t i = 0; i < d.p && what == 6; ++i)  // near-duplicate units
        for (int64_t k = 0; k < d.n && i % 8; ++k)
            d.W(i, k) = d.W(i / 8 * 8, k) * (1 + 1e-4f * normal(rng));
    for (int64_t i = 0; i < d.p && what == 7; ++i)  // equal units: ties
        for (int64_t k = 0; k < d.n; ++k) d.W(i, k) = d.W(i % 3, k);
    if (what == 8) {  // one value
        std::fill(d.x.begin(), d.x.end(), 0.3f);
        std::fill(d.w.begin(), d.w.end(), -0.7f);
    }
    for (int64_t r = 0; r < d.rows && what == 9; r += 2)  // zero rows
        for (int64_t k = 0; k < d.n; ++k) d.X(r, k) = r % 4 ? 0.0f : -0.0f;
    for (int64_t r = 0; r < d.rows && what == 10; ++r)  // rows not finite
        if (r % 3) d.X(r, pick(d.n)) = r % 3 == 1 ? NAN : kInf;
    for (int j = 0; j < 5 && what == 11; ++j)  // some units not finite or huge
        d.W(pick(d.p), pick(d.n)) = j < 2 ? NAN : j < 4 ? kInf : 3.3e38f;
    for (int64_t i = 0; i < d.p && what == 12; ++i)  // most units not finite
        if (i % 4) d.W(i, pick(d.n)) = -kInf;
    for (int64_t i = 0; i < d.p && what == 13; ++i)  // norms of every size
        for (int64_t k = 0; k < d.n; ++k) d.W(i, k) = std::ldexp(d.W(i, k), int(i * 7 % 41) - 20);
    if (what == 14) {  // exact in bf16
        for (float& v : d.x) v = round_bf16(v);
        for (float& v : d.w) v = float(int(v * 2));
    }
    for (int64_t r = 0; r < d.rows && what == 18; ++r)  // every other row and unit off centre
        for (int64_t k = 0; k < d.n && r % 2; ++k) d.X(r, k) += 5;
    for (int64_t i = 0; i < d.p && what == 18; ++i)
        for (int64_t k = 0; k < d.n && i % 2; ++k) d.W(i, k) -= 5;
    for (float& v : d.x)  // sparse and nonnegative
        if (what == 19) v = v > 1 ? v : 0;
    for (int64_t i = 0; i < d.p && what == 15; ++i)  // ascending: every tile beats the one before
        for (int64_t k = 0; k < d.n; ++k) d.W(i, k) *= 1 + float(i) / 64;
}

/// Bit 0: a bias; bit 1: nonnegative codes; bit 2: entries of z. Some are huge or not finite where
/// rows or units are.
void add_rest(Data& d, int parts, int what, std::mt19937_64& rng) {
    std::normal_distribution<float> normal;
    const auto pick = [&](int64_t n) { return int64_t(rng() % uint64_t(n)); };
    if (parts & 1) {
        d.bias.resize(size_t(d.p));
        for (float& b : d.bias) b = normal(rng);
        const float odd[] = {NAN, kInf, -kInf, 1e30f, -1e30f};
        for (int j = 0; j < 5 && what == 11; ++j) d.bias[size_t(pick(d.p))] = odd[j];
    }
    d.positive = parts & 2;
    if (parts & 4) {
        d.z_m = std::min<int64_t>(3, d.p);
        for (int64_t r = 0; r < d.rows; ++r) {
            for (int64_t j = 0; j < d.z_m; ++j) {
                d.z_indices.push_back(j * (d.p / d.z_m) + pick(d.p / d.z_m));
                d.z.push_back(10 * normal(rng));
            }
            if (what == 10 && r % 3 == 0) d.z.back() = r % 2 ? 1e30f : NAN;
        }
    }
}

/// int8 orders these units the wrong way round, as `inverted` below does bf16.
Data inverted_int8(int64_t p, int64_t m, int64_t rivals) {
    Data d(3, 256, p, m);
    constexpr float kStep = 1.0f / 127;
    for (int64_t i = 0; i < p; ++i) {
        const bool large = i % (p / m) == 1, rival = i % (p / rivals) == 0;
        const float w = large ? 63.49f : rival ? 63.51f : 31;
        for (int64_t k = 0; k < d.n; ++k) {
            const float size = k < 2 ? 127 : large && k < 22 ? 64 : w;
            d.W(i, k) = k % 2 ? -size * kStep : size * kStep;
        }
    }
    for (int64_t r = 0; r < d.rows; ++r)
        for (int64_t k = 0; k < d.n; ++k) d.X(r, k) = k % 2 ? -1.0f : 1.0f;
    return d;
}

/// bf16 orders these units the wrong way round: m of them round down, `rivals` of them up; the rest
/// is small.
Data inverted(ScreenKind kind, int64_t p, int64_t m, int64_t rivals) {
    if (kind == ScreenKind::int8_vectors) return inverted_int8(p, m, rivals);
    Data d(3, 256, p, m);
    constexpr float kStep = 0x1p-7f;
    for (int64_t i = 0; i < p; ++i) {
        const bool large = i % (p / m) == 1, rival = i % (p / rivals) == 0;
        const float w = large ? 1 + kStep * 0.49f : rival ? 1 + kStep * 0.51f : 0.5f;
        for (int64_t k = 0; k < d.n; ++k) d.W(i, k) = w;
        if (large) d.W(i, 0) = 2;
    }
    std::fill(d.x.begin(), d.x.end(), 1.0f);
    return d;
}

std::vector<ScreenKind> kinds() {
    std::vector<ScreenKind> found;
    for (ScreenKind kind : kAllKinds)
        if (screen_has(kind)) found.push_back(kind);
    return found;
}

void test_supports(const char* isa, bool fused) {
    std::mt19937_64 rng(7);
    const int64_t shapes[][5] = {// rows, n, p, m, padding
                                 {1, 1, 1, 1, 0},      {3, 17, 40, 7, 3},     {37, 33, 100, 100, 1},
                                 {2, 5, 33, 0, 0},     {33, 24, 1500, 10, 0}, {5, 30, 2600, 32, 5},
                                 {70, 16, 1100, 3, 0}, {4, 40, 2100, 300, 0}};
    for (const auto& s : shapes) {
        for (int what = 0; what < 2 * kData; ++what) {
            Data d(s[0], s[1], s[2], s[3], s[4]);
            fill(d, what % kData, rng);
            const int parts = what < kData ? 0 : 1 + (what + int(s[0])) % 7;
            add_rest(d, parts, what % kData, rng);
            const Result want = oracle(d, fused);
            for (ScreenKind kind : kinds()) {
                const Result got = screen(d, kind, d.rows / 3);
                CHECK(equal(got, want), "%s, %s, data %d, rows %d n %d p %d m %d", isa,
                      kKinds[int(kind)], what, int(s[0]), int(s[1]), int(s[2]), int(s[3]));
                const bool centred = what == 5 && kind == ScreenKind::int8_vectors;
                if ((what == 0 || centred) && d.p >= 4 * d.m && d.m)
                    CHECK(got.counts.full_rows == 0, "%s, %s, data %d: must be screened", isa,
                          kKinds[int(kind)], what);
                if (what == 10 && d.m)
                    CHECK(got.counts.full_rows >= (d.rows * 2 - 2) / 3, "%s: rows not finite", isa);
            }
        }
    }
    Data d(5, 33, 150, 4);
    fill(d, 0, rng);
    Setup unpacked(d, ScreenKind::float32, 1.0f);
    unpacked.q.packed = nullptr;
    unpacked.run(0, d.rows);
    CHECK(equal(unpacked.out, oracle(d, fused)), "%s: not packed", isa);
    for (const int64_t rivals : {80, 1280}) {  // 1280: more than a row has room for
        for (ScreenKind kind : kinds()) {
            const Data data = inverted(kind, 1280, 5, rivals);
            const Result got = screen(data, kind, 1);
            CHECK(equal(got, oracle(data, fused)), "%s, %s, inverted", isa, kKinds[int(kind)]);
            if (kind != ScreenKind::float32)
                CHECK(got.counts.full_rows == (rivals == 80 ? 0 : data.rows), "%s: %d full rows",
                      isa, int(got.counts.full_rows));
        }
    }
}

/// |u - approximation| <= bound, for the exact u and for its float32 value; how near it comes.
double worst_of_bound(const char* isa, const Data& d, bool fused, ScreenKind kind, int what) {
    Setup s(d, kind, 1.0f);
    const Block workspace(screen_workspace_bytes(s.q.kind, d.rows, d.p, d.n, d.m, d.z_m));
    std::vector<float> u(size_t(d.rows * d.p)), e(u.size());
    screen_kernels().bounds(s.q, 0, d.rows, workspace.get(), u.data(), e.data());
    double worst = 0;
    int64_t beyond = 0;
    for (int64_t r = 0; r < d.rows; ++r) {
        for (int64_t i = 0; i < d.p; ++i) {
            const float *x = &d.x[size_t(r * d.ldx)], *w = &d.w[size_t(i * d.ldw)];
            const size_t at = size_t(r * d.p + i);
            if (e[at] == kInf) continue;
            double exact = 0;
            for (int64_t k = 0; k < d.n; ++k) exact += double(x[k]) * double(w[k]);
            exact = d.rest(r, i, exact);
            const float computed = d.rest(r, i, dot(x, w, d.n, fused));
            const double off = std::max(std::fabs(exact - double(u[at])),
                                        std::fabs(double(computed) - double(u[at])));
            beyond += !(off <= double(e[at]));
            worst = std::max(worst, off / double(e[at]));
        }
    }
    CHECK(beyond == 0, "%s, %s, data %d: %d entries beyond the bound, by %g", isa,
          kKinds[int(kind)], what, int(beyond), worst);
    return worst;
}

/// Half of the units are switched off by a bias that no product outweighs: the others are screened
/// as if they were alone.
void test_units_switched_off(const char* isa, bool fused, ScreenKind kind) {
    std::mt19937_64 rng(5);
    Data d(40, 64, 4096, 16);
    fill(d, 0, rng);
    d.positive = true;
    d.bias.assign(size_t(d.p), 0.0f);
    for (int64_t i = 0; i < d.p; i += 2) d.bias[size_t(i)] = -1e9f;
    const Result got = screen(d, kind, d.rows);
    CHECK(equal(got, oracle(d, fused)), "%s, %s: units switched off", isa, kKinds[int(kind)]);
    CHECK(got.counts.full_rows == 0, "%s, %s: %ld full rows", isa, kKinds[int(kind)],
          long(got.counts.full_rows));
}

/// All stages of a few rows, or one to which z is added: bit for bit what the encoder's kernels
/// make of them, and decided.
void test_few(const char* isa, ScreenKind kind) {
    std::mt19937_64 rng(7);
    for (const int64_t p : {200, 1030}) {
        for (const int64_t stages : {1, 3}) {
            for (int what = 0; what < kData; ++what) {
                Data d(3, 70, p, 12, 2);
                fill(d, what, rng);
                d.positive = what % 2;
                if (what % 3 == 0) {
                    d.bias.resize(size_t(p));
                    for (float& b : d.bias) b = float(rng() % 100) / 400;
                }
                if (stages == 1 && what % 2 == 0) add_rest(d, d.positive ? 6 : 4, what, rng);
                std::vector<float> st(size_t(p * p)), wx(size_t(d.rows * p));
                float largest_s = 0;
                for (float& v : st) {
                    v = (float(rng() % 2001) - 1000) / 8000;
                    largest_s = std::max(largest_s, std::fabs(v));
                }
                const float* bias = d.bias.empty() ? nullptr : d.bias.data();
                const auto& encode = encode_kernels<float>();
                encode.product(d.x.data(), d.ldx, d.rows, d.w.data(), d.ldw, p, d.n, bias, 0,
                               wx.data(), p);
                for (size_t j = 0; j < d.z.size(); ++j)
                    wx[j / size_t(d.z_m) * size_t(p) + size_t(d.z_indices[j])] += d.z[j];
                const size_t size = size_t(d.rows * d.m);
                std::vector<float> values(size), saved(2 * size), want(size), want_saved(2 * size);
                std::vector<int64_t> at(size), saved_at(2 * size), want_at(size),
                    want_saved_at(2 * size);
                const StepMatrices<float> s{st.data(), 0, true};
                const Block rows_block(encode_workspace<float>(p, d.m));
                const int64_t stride = d.rows * d.m;
                encode.rows(wx.data(), d.rows, p, s,
                            {want.data(), want_at.data(), want_saved.data(), want_saved_at.data(),
                             d.m, stages, stride, d.positive},
                            rows_block.get());
                const Block packed(screen_packed_bytes(kind, p, d.n));
                screen_kernels().pack(kind, d.w.data(), d.ldw, bias, p, d.n, 0, p, packed.get());
                ScreenProblem q{kind, d.x.data(), d.ldx,        d.w.data(), d.ldw,  d.n,
                                p,    d.m,        packed.get(), nullptr,    nullptr};
                q.positive = d.positive;
                q.bias = bias;
                q.z_values = d.z.data();
                q.z_indices = d.z_indices.data();
                q.z_m = d.z_m;
                const Block block(screen_few_workspace_bytes(kind, d.rows, p, d.n, d.m, d.z_m));
                bool decided[3];
                screen_kernels().few(q, d.rows, s, largest_s,
                                     {values.data(), at.data(), saved.data(), saved_at.data(), d.m,
                                      stages, stride, d.positive},
                                     block.get(), decided);
                for (int64_t r = 0; r < d.rows; ++r) {
                    if (what == 0)
                        CHECK(decided[r], "%s, %s: p %d, a row of normal numbers was not decided",
                              isa, kKinds[int(kind)], int(p));
                    if (!decided[r]) continue;
                    const auto equal = [&](const float* v, const float* u, const int64_t* i,
                                           const int64_t* j) {
                        return !memcmp(v + r * d.m, u + r * d.m, size_t(d.m) * 4) &&
                               std::equal(i + r * d.m, i + (r + 1) * d.m, j + r * d.m);
                    };
                    bool good = equal(values.data(), want.data(), at.data(), want_at.data());
                    for (int64_t k = 0; k + 1 < stages; ++k)
                        good =
                            good &&
                            equal(saved.data() + k * stride, want_saved.data() + k * stride,
                                  saved_at.data() + k * stride, want_saved_at.data() + k * stride);
                    CHECK(good, "%s, %s: p %d, %d stages, data %d, row %d: few rows", isa,
                          kKinds[int(kind)], int(p), int(stages), what, int(r));
                }
            }
        }
    }
}

void test_bound(const char* isa, bool fused, ScreenKind kind) {
    std::mt19937_64 rng(11);
    for (int64_t n : {1, 31, 256, 1000}) {
        for (int what = 0; what < kData; ++what) {
            Data d(6, n, 64, 4);
            fill(d, what, rng);
            Data whole = d;
            add_rest(whole, 5, what, rng);
            worst_of_bound(isa, d, fused, kind, what);
            worst_of_bound(isa, whole, fused, kind, what);
            // all roundings the same way, as far as they go
            for (float& v : d.x) v = std::copysign(1 + 0x1.fep-9f, v);
            for (float& v : d.w) v = 1 + 0x1.fep-9f;
            if (what == 0)
                for (int64_t k = 0; k < n; ++k) d.X(0, k) = d.W(0, k);
            const double worst = worst_of_bound(isa, d, fused, kind, 100 + what);
            const bool bf16 = kind != ScreenKind::float32 && kind != ScreenKind::int8_vectors;
            if (what == 0 && bf16)
                CHECK(worst > 0.8, "%s, n %d: the bound is far from sharp: %g", isa, int(n), worst);
        }
    }
    const double worst = worst_of_bound(isa, inverted(kind, 1280, 5, 80), fused, kind, 200);
    if (kind != ScreenKind::int8_vectors) return;
    CHECK(worst > 0.8, "%s: the bound of int8 is far from sharp: %g", isa, worst);
    Data d(1, kInt8MostTerms, 3, 1);  // the largest sums of products
    for (int64_t k = 0; k < d.n; ++k) {
        d.X(0, k) = d.W(0, k) = k % 2 ? -1.0f : 1.0f;
        d.W(1, k) = -d.X(0, k);
        d.W(2, k) = 1 + d.X(0, k);
    }
    worst_of_bound(isa, d, fused, kind, 300);
    CHECK(!screen_has(kind, kInt8MostTerms + 1), "%s: sums of int8 may overflow", isa);
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        const bool fused = std::string(isa) != "scalar";
        test_supports(isa, fused);
        for (ScreenKind kind : kinds()) {
            test_bound(isa, fused, kind);
            test_units_switched_off(isa, fused, kind);
            test_few(isa, kind);
        }
        // A bound ten times too small does harm, and these tests would see it.
        for (ScreenKind kind : kinds()) {
            if (kind == ScreenKind::float32) continue;
            const Data d = inverted(kind, 1280, 5, 80);
            CHECK(!equal(screen(d, kind, 1, 0.1f), oracle(d, fused)), "mutation not caught");
        }
    });
    for (ScreenKind kind : kAllKinds)
        if (!screen_has(kind)) std::printf("%s: not tested, not in this CPU\n", kKinds[int(kind)]);
    return report("screen");
}
