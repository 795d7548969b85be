#include "torch/screen.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "core/screen.h"
#include "core/top_m.h"

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

/// The best kind for the task. bfloat16 must pay: below 32 rows packing W costs more than it saves.
ScreenKind kind_for(int64_t batch, int64_t p, int64_t m) {
    const int wish = screen_wish();
    if (wish != 0 && (wish == 1 || (batch >= 32 && few_enough(p, m)))) {
        for (const ScreenKind kind : {ScreenKind::bfloat16_tiles, ScreenKind::bfloat16_vectors})
            if (wish == 1 ? screen_has(kind) : screen_is_fast(kind)) return kind;
    }
    return ScreenKind::float32;
}

/// For few rows: the units in `parts`, a task each, and the m largest of what they found. An entry
/// does not depend on its part, and parts are in order, so ties go to the lowest index.
void screen_by_units(const ScreenProblem& q, int64_t rows, int64_t parts) {
    const int64_t m = q.m, part = (q.p + parts - 1) / parts, found = parts * m;
    const Buffer<float> values(parts * rows * m), row(found);
    const Buffer<int64_t> indices(parts * rows * m);
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            ScreenProblem some = q;
            some.w += t * part * q.ldw;
            some.p = std::min(part, q.p - t * part);
            some.values = values.get() + t * rows * m;
            some.indices = indices.get() + t * rows * m;
            const Buffer<char> workspace(
                screen_workspace_bytes(some.kind, rows, some.p, some.n, m));
            deepl0::screen_top_m(some, 0, rows, workspace.get(), nullptr);
        }
    });
    const Buffer<char> workspace(int64_t(top_m_workspace_bytes(DType::f32, found, m)));
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t t = 0; t < parts; ++t)
            std::copy_n(values.get() + (t * rows + r) * m, m, row.get() + t * m);
        int64_t* chosen = q.indices + r * m;
        top_m(DType::f32, row.get(), found, found, m, q.values + r * m, chosen, 0, 1,
              workspace.get());
        for (int64_t j = 0; j < m; ++j) {
            const int64_t t = chosen[j] / m;
            chosen[j] = t * part + indices.get()[(t * rows + r) * m + chosen[j] % m];
        }
    }
}

}  // namespace

bool screens(int64_t batch, int64_t p, int64_t m) {
    constexpr int64_t kLarge = 4096;
    return kind_for(batch, p, m) != ScreenKind::float32 || (p >= kLarge && few_enough(p, m));
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

    const ScreenKind kind = kind_for(batch, p, m);
    // For a few rows the dot products are as fast as any tile, and nothing is packed.
    const bool pack = kind != ScreenKind::float32 || batch > 64;
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
    constexpr int64_t kRows = 32, kUnits = 8192;  // of a task at least
    const int64_t parts =
        std::min<int64_t>(torch::stable::get_num_threads(), p / std::max(kUnits, m));
    if (!pack && batch <= kRows && parts > 1) {
        screen_by_units(q, batch, parts);
        return {values, indices};
    }
    torch::stable::parallel_for(0, batch, kRows, [&](int64_t begin, int64_t end) {
        const Buffer<char> workspace(screen_workspace_bytes(kind, end - begin, p, n, m));
        deepl0::screen_top_m(q, begin, end, workspace.get(), nullptr);
    });
    return {values, indices};
}

}  // namespace deepl0::torch_ops
