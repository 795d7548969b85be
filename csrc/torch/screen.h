// What the other bindings need of screening.
#pragma once

#include <atomic>
#include <cmath>
#include <mutex>
#include <optional>
#include <tuple>

#include "core/screen.h"
#include "torch/kept.h"
#include "torch/panels.h"
#include "torch/steps.h"

namespace deepl0::torch_ops {

/// Whether one stage is served by screen_top_m: always for large p, where its codes are promised to
/// be batch-invariant, below that where screening in bf16 or int8 (packing W included) is the
/// fastest way. Rule and measurements in docs/screening.md. The environment variable DEEPL0_SCREEN
/// forbids these (0) or asks for them wherever the CPU can (1). Throws at another word. What is
/// kept has no say, so that no bit depends on it.
bool screens(int64_t batch, int64_t n, int64_t p, int64_t m);

/// W [p, n] and bias [p] (may be null) prepared for screening `batch` rows at a time, at most m of
/// p entries kept of each. Refers to the memory of both, and packs W only where it is not kept,
/// with this bias.
class Screen {
  public:
    Screen(Matrix<const float> w, const float* bias, int64_t batch, int64_t m, Kept* kept = nullptr,
           bool few = false);

    /// A code in memory: values and indices [rows, m].
    struct Code {
        float* values;
        int64_t* indices;
        int64_t m;
        Code from(int64_t row) const { return {values + row * m, indices + row * m, m}; }
    };

    /// Rows of x to the m entries of largest |u|, u = x W' + bias + z, or of max(u, 0), ascending.
    /// z: a code of ascending indices, or m = 0 for none. Single-threaded.
    void rows(Matrix<const float> x, Code z, bool positive, Code out) const;
    /// ScreenKernels::few.
    void few(Matrix<const float> x, Code z, bool positive, StepMatrices<float> steps,
             float largest_s, TopMCodes<float> codes, bool* decided) const;

  private:
    struct Packed {
        ScreenKind kind;
        const char* w = nullptr;  // null: nothing is screened
        std::optional<Buffer<char>> own = {};
    };

    void pack(Packed& to) const;
    void run(const Packed& by, Matrix<const float> x, Code z, bool positive, Code out) const;

    Matrix<const float> w_;
    const float* bias_;
    Kept* kept_;
    Packed packed_;
    // Where int8 decides too few rows, W is packed once more.
    enum class Int8 { untried, good, bad };
    mutable std::atomic<Int8> int8_{Int8::untried};
    mutable std::once_flag once_;
    mutable Packed without_int8_;
};

/// Whether all stages of a few rows, W x of which is a pass over W, are screened, from a kept W:
/// the bits are the same. W that stays in L2 is read as fast as it is screened. (Not for some calls
/// after one that it could not decide.)
bool screens_few(int64_t batch, int64_t n, int64_t p, int64_t m, Kept& kept);

/// The codes of x by ScreenKernels::few, and of a row r that it does not decide by `otherwise(r,
/// its codes)`. z: of a stage of a factored encoder. steps: so many matrices, transposed.
template <class F>
void screen_few(Matrix<const float> x, Matrix<const float> w, const float* bias, Screen::Code z,
                StepMatrices<float> steps, int64_t matrices, TopMCodes<float> codes, Kept& kept,
                const F& otherwise) {
    const Screen screen(w, bias, 1, codes.m, &kept, true);
    const auto largest_of = [&](float* out) {
        *out = 0.0f;
        for (int64_t i = 0; i < matrices * w.rows * w.rows; ++i) {
            const int64_t at = i / (w.rows * w.rows) * steps.step_stride + i % (w.rows * w.rows);
            const float size = std::fabs(steps.data[at]);
            if (!(size <= *out)) *out = size;  // a NaN stays
        }
    };
    const float largest = matrices > 0 ? *kept.largest.get<float>(1, largest_of) : 0.0f;
    bool decided[kFew];
    screen.few(x, z, codes.positive, steps, largest, codes, decided);
    for (int64_t r = 0; r < x.rows; ++r) {
        if (decided[r]) continue;
        kept.without_int8 = 16;
        TopMCodes<float> one = codes;
        for (float** at : {&one.values, &one.saved_values}) *at += r * codes.m;
        for (int64_t** at : {&one.indices, &one.saved_indices}) *at += r * codes.m;
        otherwise(r, one);
    }
}

/// One stage, u = x W' + bias: x [B, n], W [p, n] float32, checked, -> values [B, m] float32,
/// indices [B, m] int64. [B, p] is never formed. The same bits for every batch, number of threads
/// and DEEPL0_SCREEN.
std::tuple<Tensor, Tensor> screen_top_m(Tensor x, Tensor W, const float* bias, int64_t m,
                                        bool positive);

/// The same to memory that is there.
void screen_top_m(Matrix<const float> x, Matrix<const float> w, const float* bias, bool positive,
                  Screen::Code out, Kept* kept);

}  // namespace deepl0::torch_ops
