#include "torch/screen.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "core/screen.h"

namespace deepl0::torch_ops {

namespace {

/// The environment variable DEEPL0_SCREEN, read at the first call: 0, 1, or -1 where it is not set.
int screen_wish() {
    static const int wish = [] {
        const char* word = std::getenv("DEEPL0_SCREEN");
        if (!word || !*word) return -1;
        if (std::strcmp(word, "0") != 0 && std::strcmp(word, "1") != 0)
            throw std::runtime_error("environment variable DEEPL0_SCREEN must be 0 or 1, got \"" +
                                     std::string(word) + "\"");
        return word[0] - '0';
    }();
    return wish;
}

/// Above this share of candidates they cost more than what was screened away.
bool few_enough(int64_t p, int64_t m) { return p >= 12 * m; }

/// Below, what is screened must pay; from here on codes are batch-invariant.
constexpr int64_t kLarge = 4096;

/// The bound of int8 grows as the square root of n against the spread of u: beyond n = 1024 it
/// excludes too little, and before that the first rows tell (few_rescored). Where W and x are
/// float32, panels are as fast below kLarge; where bfloat16 is what int8 must beat, it gains less
/// by an entry, and at p < 64 m it would have to compute too many again.
bool int8_pays(int64_t n, int64_t p, int64_t m, bool bfloat16) {
    return n <= 1024 && (bfloat16 ? p >= 1024 && p >= 64 * m : p >= kLarge);
}

/// Whether so few entries were computed again, or rows as a whole, that int8 saved more than they
/// took: one entry costs as much as int8 saves on 30 to 60 others (measured, against either).
bool few_rescored(const ScreenCounts& counts, int64_t rows, int64_t p, bool bfloat16) {
    return counts.full_rows * (bfloat16 ? 32 : 8) <= rows && counts.rescored * 32 <= rows * p;
}

/// Whether a few rows of a kept W are screened, in int8: W x is a pass over W, and int8 has the
/// fewest bytes (bfloat16 lost to float32 where W stays in a cache: Zen 4).
bool few_pay(int64_t batch, int64_t n, int64_t p, int64_t m) {
    return screen_wish() != 0 && batch <= kFew && few_enough(p, m) &&
           p * n * 4 >= int64_t(1) << 20 && n <= 1024 && screen_is_fast(ScreenKind::int8_vectors);
}

/// The best kind for the task, or the best but int8. Low precision must pay: below 32 rows packing
/// W costs more than it saves, unless it is kept. (Where p is not large, what is kept must not
/// choose between screening and not: their codes differ. Between kinds it may.)
ScreenKind kind_for(int64_t batch, int64_t n, int64_t p, int64_t m, bool kept = false,
                    bool int8 = true) {
    const int wish = screen_wish();
    const bool pays = (batch >= 32 || (kept && p >= kLarge)) && few_enough(p, m);
    if (wish == 0 || (wish < 0 && !pays)) return ScreenKind::float32;
    const auto serves = [&](ScreenKind kind) {
        return wish == 1 ? screen_has(kind, n) : screen_is_fast(kind, n);
    };
    if (serves(ScreenKind::bfloat16_tiles)) return ScreenKind::bfloat16_tiles;
    const bool bfloat16 = serves(ScreenKind::bfloat16_vectors);
    if (int8 && serves(ScreenKind::int8_vectors) &&
        (wish == 1 ? !bfloat16 : int8_pays(n, p, m, bfloat16)))
        return ScreenKind::int8_vectors;
    return bfloat16 ? ScreenKind::bfloat16_vectors : ScreenKind::float32;
}

}  // namespace

bool screens(int64_t batch, int64_t n, int64_t p, int64_t m) {
    return kind_for(batch, n, p, m) != ScreenKind::float32 || (p >= kLarge && few_enough(p, m));
}

bool screens_few(int64_t batch, int64_t n, int64_t p, int64_t m, Kept& kept) {
    if (!few_pay(batch, n, p, m)) return false;
    if (kept.without_int8 <= 0) return true;
    --kept.without_int8;
    return false;
}

Screen::Screen(Matrix<const float> w, const float* bias, int64_t batch, int64_t m, Kept* kept,
               bool few)
    : w_(w),
      bias_(bias),
      kept_(kept),
      packed_{few ? ScreenKind::int8_vectors : kind_for(batch, w.cols, w.rows, m, kept != nullptr)},
      without_int8_{kind_for(batch, w.cols, w.rows, m, kept != nullptr, false)} {
    if (!few && kept && packed_.kind == ScreenKind::int8_vectors && kept->without_int8 > 0) {
        --kept->without_int8;
        packed_.kind = without_int8_.kind;
    }
    // For a few rows the dot products are as fast as any tile, and nothing is packed.
    if (packed_.kind != ScreenKind::float32 || batch > (kept ? 8 : 64)) pack(packed_);
}

void Screen::pack(Packed& to) const {
    const int64_t bytes = screen_packed_bytes(to.kind, w_.rows, w_.cols);
    const auto fill = [&](char* out) {
        constexpr int64_t kGroups = 16;  // of units per task
        const int64_t groups = (w_.rows + kScreenGroup - 1) / kScreenGroup;
        torch::stable::parallel_for(0, groups, kGroups, [&](int64_t begin, int64_t end) {
            screen_kernels().pack(to.kind, w_.data, w_.row_stride, bias_, w_.rows, w_.cols,
                                  begin * kScreenGroup, std::min(w_.rows, end * kScreenGroup), out);
        });
    };
    if (kept_) {
        to.w = kept_->screen[size_t(to.kind)].get<char>(bytes, fill);
    } else {
        to.own.emplace(bytes);
        fill(to.own->get());
        to.w = to.own->get();
    }
}

void Screen::run(const Packed& by, Matrix<const float> x, Code z, bool positive, Code out) const {
    const ScreenProblem q{by.kind, x.data,   x.row_stride, w_.data,    w_.row_stride, w_.cols,
                          w_.rows, out.m,    by.w,         out.values, out.indices,   positive,
                          bias_,   z.values, z.indices,    z.m};
    const Buffer<char> workspace(
        screen_workspace_bytes(by.kind, x.rows, w_.rows, w_.cols, out.m, z.m));
    ScreenCounts counts;
    screen_kernels().top_m(q, 0, x.rows, workspace.get(), &counts);
    if (by.kind == ScreenKind::int8_vectors)
        int8_ = few_rescored(counts, x.rows, w_.rows, without_int8_.kind != ScreenKind::float32)
                    ? Int8::good
                    : Int8::bad;
    if (kept_ && int8_ == Int8::bad) kept_->without_int8 = 16;
}

void Screen::rows(Matrix<const float> x, Code z, bool positive, Code out) const {
    int64_t done = 0;
    if (packed_.kind == ScreenKind::int8_vectors && int8_ == Int8::untried) {
        done = std::min<int64_t>(32, x.rows);
        run(packed_, x.range(0, done), z, positive, out);
        if (done == x.rows) return;
    }
    const bool coarse = packed_.kind == ScreenKind::int8_vectors && int8_ == Int8::bad;
    if (coarse) std::call_once(once_, [&] { pack(without_int8_); });
    run(coarse ? without_int8_ : packed_, x.range(done, x.rows), z.from(done), positive,
        out.from(done));
}

void Screen::few(Matrix<const float> x, Code z, bool positive, StepMatrices<float> steps,
                 float largest_s, TopMCodes<float> codes, bool* decided) const {
    ScreenProblem q{packed_.kind, x.data,  x.row_stride, w_.data, w_.row_stride, w_.cols,
                    w_.rows,      codes.m, packed_.w,    nullptr, nullptr};
    q.positive = positive;
    q.bias = bias_;
    q.z_values = z.values;
    q.z_indices = z.indices;
    q.z_m = z.m;
    Blocks blocks;
    void* const workspace = blocks.take<char>(
        screen_few_workspace_bytes(packed_.kind, x.rows, w_.rows, w_.cols, codes.m, z.m));
    screen_kernels().few(q, x.rows, steps, largest_s, codes, workspace, decided);
}

void screen_top_m(Matrix<const float> x, Matrix<const float> w, const float* bias, bool positive,
                  Screen::Code out, Kept* kept) {
    if (x.rows == 0 || out.m == 0) return;
    const Screen screen(w, bias, x.rows, out.m, kept);
    torch::stable::parallel_for(0, x.rows, 32, [&](int64_t begin, int64_t end) {
        screen.rows(x.range(begin, end), {}, positive, out.from(begin));
    });
}

std::tuple<Tensor, Tensor> screen_top_m(Tensor x, Tensor W, const float* bias, int64_t m,
                                        bool positive) {
    const Matrix<const float> xm = row_major_matrix<float>(x), wm = row_major_matrix<float>(W);
    Tensor values = fresh({xm.rows, m}, ScalarType::Float);
    Tensor indices = fresh({xm.rows, m}, ScalarType::Long);
    const Screen::Code out{static_cast<float*>(values.mutable_data_ptr()),
                           static_cast<int64_t*>(indices.mutable_data_ptr()), m};
    screen_top_m(xm, wm, bias, positive, out, nullptr);
    return {values, indices};
}

}  // namespace deepl0::torch_ops
