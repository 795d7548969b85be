// Forward of encode_top_m with D: z_{k+1} = top_m(z_k + step_k W (x - D z_k) + b).
//
// The residual is a gather-sum of m atoms, so a stage is one stage over x - D z_k, to which z_k
// adds m entries before the selection: over a large dictionary it is screened as any first stage
// is, and neither [B, p] nor S = I - W D is formed. 2 K B (n p + m n) flops; memory O(B (n + K m)),
// W packed once for all stages, and a copy of D' where D is not a transposed view.
#include <numeric>
#include <tuple>
#include <vector>

#include "torch/factored.h"
#include "torch/planned.h"
#include "torch/product.h"
#include "torch/screen.h"

namespace deepl0::torch_ops {
namespace {

using Encoded = std::tuple<Tensor, Tensor, Tensor, Tensor>;

/// Rows that go through all stages together: their residuals stay in L2.
constexpr int64_t kRows = 512;

/// A stage of small p: u in full, a panel of rows at a time.
template <class T>
class DenseStage {
  public:
    DenseStage(Matrix<const T> w, const T* bias, int64_t batch, bool positive, Kept* kept)
        : n_(w.cols), p_(w.rows), product_(w, bias, batch, true, kept), positive_(positive) {}

    void operator()(const T* r, int64_t rows, Codes<T> z, Codes<T> out) const {
        const int64_t n = n_, p = p_;
        Blocks blocks;
        const int64_t most = std::min(rows, panel_rows(p, sizeof(T), 256));
        T* const u = blocks.take<T>(most * p);
        void* const workspace = blocks.take<char>(encode_workspace<T>(p, out.m));
        each_panel(0, rows, most, [&](int64_t first, int64_t some) {
            product_(row_major(r + first * n, some, n), u);
            const Codes<T> add = z.from(first), to = out.from(first);
            for (int64_t i = 0; i < some * z.m; ++i)
                u[i / z.m * p + add.indices[i]] += add.values[i];
            encode_kernels<T>().select(
                u, some, p, {to.values, to.indices, to.values, to.indices, to.m, 1, 0, positive_},
                0, workspace);
        });
    }

  private:
    int64_t n_, p_;
    StageProduct<T> product_;
    bool positive_;
};

/// All stages of x, each with its factor of W, to their codes, of values rounded to `code`.
template <class T>
void encode_to(Matrix<const T> x, Matrix<const T> w, const Tensor& d, const T* bias,
               const std::vector<T>& steps, const std::vector<Codes<T>>& codes, bool positive,
               DType code, Kept* kept) {
    const int64_t batch = x.rows, n = x.cols, p = w.rows, stages = int64_t(codes.size());
    int64_t most = 0;
    for (const Codes<T>& code : codes) most = std::max(most, code.m);
    std::optional<Residuals<T>> residuals;
    if (stages > 1) residuals.emplace(x, d, batch * most, kept);
    const auto run = [&](const auto& stage) {
        each_range(batch, [&](int64_t begin, int64_t end) {
            const Buffer<T> buffer(std::min(kRows, end - begin) * n);
            each_panel(begin, end, kRows, [&](int64_t first, int64_t rows) {
                for (int64_t k = 0; k < stages; ++k) {
                    const Codes<T> z = k > 0 ? codes[size_t(k - 1)] : Codes<T>{};
                    if (residuals)
                        (*residuals)(first, rows, z, steps[size_t(k)], buffer.get());
                    else
                        for (int64_t e = 0; e < rows * n; ++e)
                            buffer.get()[e] =
                                steps[0] * x.data[(first + e / n) * x.row_stride + e % n];
                    const Codes<T> out = codes[size_t(k)].from(first);
                    stage(buffer.get(), rows, z.from(first), out);
                    if constexpr (std::is_same_v<T, float>)
                        threshold_kernels().round(code, out.values, rows * out.m);
                }
            });
        });
    };
    if constexpr (std::is_same_v<T, float>) {
        if (screens(batch, n, p, most)) {
            const Screen screen(w, bias, batch, most, kept);
            run([&](const T* r, int64_t rows, Codes<T> z, Codes<T> out) {
                screen.rows(row_major(r, rows, n), {z.values, z.indices, z.m}, positive,
                            {out.values, out.indices, out.m});
            });
            return;
        }
        if (kept && screens_few(batch, n, p, most, *kept)) {
            const DenseStage<T> otherwise(w, bias, batch, positive, kept);
            run([&](const T* r, int64_t rows, Codes<T> z, Codes<T> out) {
                const TopMCodes<T> codes{out.values, out.indices, out.values, out.indices,
                                         out.m,      1,           0,          positive};
                screen_few(row_major(r, rows, n), w, bias, {z.values, z.indices, z.m}, {}, 0, codes,
                           *kept, [&](int64_t row, const TopMCodes<T>&) {
                               otherwise(r + row * n, 1, z.from(row), out.from(row));
                           });
            });
            return;
        }
    }
    run(DenseStage<T>(w, bias, batch, positive, kept));
}

/// The codes of the stages in memory: of the last one at values and indices, of those before it one
/// after the other at lower_*.
template <class T>
std::vector<Codes<T>> codes_of(const std::vector<int64_t>& m, int64_t batch, T* values,
                               int64_t* indices, T* lower_values, int64_t* lower_indices) {
    std::vector<Codes<T>> codes;
    for (size_t k = 0; k + 1 < m.size(); ++k) {
        codes.push_back({lower_values, lower_indices, m[k]});
        lower_values += batch * m[k];
        lower_indices += batch * m[k];
    }
    codes.push_back({values, indices, m.back()});
    return codes;
}

/// Entries of a row of all stages before the last.
int64_t entries_before(const std::vector<int64_t>& m) {
    return std::accumulate(m.begin(), m.end() - 1, int64_t(0));
}

/// The same with memory for the results.
template <class T>
Encoded encode(Tensor x, Tensor w, Tensor d, const Bias& bias, const std::vector<T>& steps,
               const std::vector<int64_t>& m, bool positive, DType code, bool save) {
    const Matrix<const T> xm = row_major_matrix<T>(x), wm = row_major_matrix<T>(w);
    const int64_t batch = xm.rows, before = entries_before(m);
    const ScalarType type = x.scalar_type();
    Tensor values = fresh({batch, m.back()}, type);
    Tensor indices = fresh({batch, m.back()}, ScalarType::Long);
    Tensor lower_values = fresh({batch * before}, type);
    Tensor lower_indices = fresh({batch * before}, ScalarType::Long);
    if (batch > 0)
        encode_to<T>(xm, wm, d, bias.data<T>(), steps,
                     codes_of(m, batch, static_cast<T*>(values.mutable_data_ptr()),
                              static_cast<int64_t*>(indices.mutable_data_ptr()),
                              static_cast<T*>(lower_values.mutable_data_ptr()),
                              static_cast<int64_t*>(lower_indices.mutable_data_ptr())),
                     positive, code, nullptr);
    return {values, indices, lower_values, lower_indices};
}

}  // namespace

void planned_top_m_factored(const KeptWeights& weights, Matrix<const float> x,
                            const std::vector<int64_t>& m, const std::vector<float>& steps,
                            bool positive, float* values, int64_t* indices) {
    const int64_t before = x.rows * entries_before(m);
    const Buffer<float> lower_values(before);
    const Buffer<int64_t> lower_indices(before);
    encode_to<float>(x, weights.w, *weights.d, weights.bias, steps,
                     codes_of(m, x.rows, values, indices, lower_values.get(), lower_indices.get()),
                     positive, weights.code, &weights.kept);
}

Encoded encode_top_m_factored(Tensor x, Tensor W, Tensor D, std::optional<Tensor> bias,
                              std::optional<Tensor> step, std::vector<int64_t> m, bool positive,
                              bool save) {
    const char* op = "encode_top_m_factored";
    check_factored(x, W, D, op);
    STD_TORCH_CHECK(!m.empty(), op, ": m must have an entry for every stage, got none");
    for (const int64_t entries : m) check_m(entries, W.size(0));
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const DType code = dtype_of(x, "x");
    const Bias b(op, bias, x, W.size(0));
    x = cast(x, type);
    W = cast(W, type);
    D = cast_matrix(D, type);
    const int64_t stages = int64_t(m.size());
    Encoded codes =
        type == ScalarType::Double
            ? encode<double>(x, W, D, b, steps_of<double>(op, step, stages), m, positive, code,
                             save)
            : encode<float>(x, W, D, b, steps_of<float>(op, step, stages), m, positive, code, save);
    std::get<0>(codes) = cast(std::get<0>(codes), given);
    return codes;
}

}  // namespace deepl0::torch_ops
