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

/// Below 32 rows packing W in bf16 costs more than it saves.
bool bfloat16_pays(int64_t batch, int64_t p, int64_t m) {
    const int wish = screen_wish();
    if (wish == 0 || !screen_has_bfloat16()) return false;
    return wish == 1 || (batch >= 32 && few_enough(p, m));
}

}  // namespace

bool screens(int64_t batch, int64_t p, int64_t m) {
    constexpr int64_t kLarge = 4096;
    return bfloat16_pays(batch, p, m) || (p >= kLarge && few_enough(p, m));
}

std::tuple<Tensor, Tensor> screen_top_m(Tensor x, Tensor W, int64_t m) {
    constexpr const char* op = "screen_top_m";
    STD_TORCH_CHECK(x.dim() == 2 && W.dim() == 2 && x.size(1) == W.size(1), op,
                    ": x [B, n] and W [p, n] do not fit");
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && W.scalar_type() == ScalarType::Float,
                    op, ": expected float32 tensors");
    const int64_t p = W.size(0);
    STD_TORCH_CHECK(m >= 0 && m <= p, op, ": m must be in [0, ", p, "], got ", m);
    const Matrix<const float> xm = row_major_matrix<float>(x), wm = row_major_matrix<float>(W);
    const int64_t batch = xm.rows, n = xm.cols;
    Tensor values = fresh({batch, m}, ScalarType::Float);
    Tensor indices = fresh({batch, m}, ScalarType::Long);
    if (batch == 0 || m == 0) return {values, indices};

    const ScreenKind kind = bfloat16_pays(batch, p, m) ? ScreenKind::bfloat16 : ScreenKind::float32;
    // For a few rows the dot products are as fast as any tile, and nothing is packed.
    const bool pack = kind == ScreenKind::bfloat16 || batch > 64;
    const Buffer<char> packed(pack ? screen_packed_bytes(kind, p, n) : 0);
    constexpr int64_t kGroups = 16;  // of units per task
    const int64_t groups = pack ? (p + kScreenGroup - 1) / kScreenGroup : 0;
    torch::stable::parallel_for(0, groups, kGroups, [&](int64_t begin, int64_t end) {
        screen_pack(kind, wm.data, wm.row_stride, p, n, begin * kScreenGroup,
                    std::min(p, end * kScreenGroup), packed.get());
    });
    ScreenProblem q{kind,
                    xm.data,
                    xm.row_stride,
                    wm.data,
                    wm.row_stride,
                    n,
                    p,
                    m,
                    pack ? packed.get() : nullptr,
                    static_cast<float*>(values.mutable_data_ptr()),
                    static_cast<int64_t*>(indices.mutable_data_ptr())};
    torch::stable::parallel_for(0, batch, 32, [&](int64_t begin, int64_t end) {
        const Buffer<char> workspace(screen_workspace_bytes(kind, end - begin, p, n, m));
        deepl0::screen_top_m(q, begin, end, workspace.get(), nullptr);
    });
    return {values, indices};
}

}  // namespace deepl0::torch_ops
