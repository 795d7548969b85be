#include <optional>
#include <tuple>

#include "core/encode.h"
#include "torch/planned.h"
#include "torch/product.h"
#include "torch/screen.h"

namespace deepl0::torch_ops {

namespace {

using Codes = std::tuple<Tensor, Tensor, Tensor, Tensor>;

enum class Path {
    rows,     // S' plain, each row through all stages
    columns,  // from S as it is, for a few rows
    panels,   // S' in column panels
    dense,    // product with the unpooled code
};

/// Whether z S' is a gather-sum of m rows of S'. Measured on one core of an Intel with 2 MiB of L2,
/// float32: it costs 0.014 m us a row at p = 512 and 0.065 m at p = 2048 (panels), the dense
/// product 2.6 and 42 us, so they meet at m = 0.45 p (L2) and 0.35 p (panels). On a Zen 5 with 1
/// MiB the BLAS is slow (product_pays), so that the sums win up to 0.75 p.
template <class T>
bool sums_pay(int64_t p, int64_t m) {
    const bool in_l2 = p * p * int64_t(sizeof(T)) * 3 <= l2_bytes() * 2;
    return in_l2 ? m * 20 <= p * (product_pays() ? 15 : 9) : m * 3 <= p;
}

/// How S' is read, which changes no bit of the sums: entry by entry they are the same in the rows
/// of S', in S as it is, and in panels. steps: products with S per row; packings: of S'. On an Ice
/// Lake with 1.25 MiB of L2 the scattered entries of S cost p m 0.5 ns a row (1.8 beyond L2),
/// panels packed on the way 46 us at p = 512 and 1.3 ms at p = 2048, rows of S' in L3 8 KB at 22
/// GB/s.
template <class T>
Path path_of_sums(int64_t batch, int64_t p, int64_t m, int64_t steps, int64_t packings,
                  bool s_by_columns, bool kept) {
    const bool in_l2 = p * p * int64_t(sizeof(T)) * 3 <= l2_bytes() * 2;
    const int64_t read = batch * m * steps;  // rows of S'
    if (s_by_columns || kept) {
        if (in_l2 || batch <= kFew) return Path::rows;
        return read * 2 <= (kept ? 3 : 8) * p * packings ? Path::rows : Path::panels;
    }
    if (read <= (p <= 256 ? 32 : 200) * packings) return Path::columns;
    return in_l2 ? Path::rows : Path::panels;
}

/// Stages 2.. of one panel by the product z S': z is unpooled into a panel of zeros and wiped
/// again.
template <class T>
void encode_dense(const T* wx, int64_t rows, int64_t p, const Steps<T>& s, TopMCodes<T> out, T* z,
                  T* u, void* workspace) {
    const auto& kernels = encode_kernels<T>();
    kernels.select(wx, rows, p, out, 0, workspace);
    for (int64_t k = 1; k < out.stages; ++k) {
        const T* v = out.saved_values + (k - 1) * out.saved_stride;
        const int64_t* idx = out.saved_indices + (k - 1) * out.saved_stride;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = r * out.m; j < (r + 1) * out.m; ++j) z[r * p + idx[j]] = v[j];
        const Matrix<const T> sk = s[k - 1];
        if (rows <= kFew && sk.col_stride == 1)
            few_product<T>(z, p, rows, sk, wx, p, u);
        else
            addmm<T>(row_major(u, rows, p), row_major(wx, rows, p), row_major<const T>(z, rows, p),
                     sk.transposed());
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = r * out.m; j < (r + 1) * out.m; ++j) z[r * p + idx[j]] = T(0);
        kernels.select(u, rows, p, out, k, workspace);
    }
}

/// All stages of x to the codes, that many as these have.
template <class T>
void encode_to(Matrix<const T> x, Matrix<const T> w, std::optional<StepsInMemory<T>> s,
               const T* bias, const TopMCodes<T>& codes, Kept* kept) {
    const int64_t batch = x.rows, p = w.rows, m = codes.m, stages = codes.stages;
    const int64_t packings = s ? s->matrices : 1;
    Path path = Path::rows;
    if (stages > 1 && m > 0)
        path = sums_pay<T>(p, m) ? path_of_sums<T>(batch, p, m, stages - 1, packings,
                                                   s->by_columns(), kept != nullptr)
                                 : Path::dense;
    const bool panels = path == Path::panels, dense = path == Path::dense;
    const int64_t width = panel_width<T>(p, kept != nullptr),
                  most_rows = panel_rows(p, sizeof(T), panels ? 1024 : 256);
    std::optional<Steps<T>> steps;
    if (s && stages > 1 && m > 0) steps.emplace(*s, p, path == Path::rows, panels, kept);
    const StepMatrices<T> kept_panels = steps ? steps->panels() : StepMatrices<T>{};
    const auto& kernels = encode_kernels<T>();
    const RowProduct<T> product(x, w, bias, kept);

    each_range(batch, [&](int64_t begin, int64_t end) {
        const int64_t most = std::min(most_rows, end - begin);
        Blocks blocks;
        void* const workspace = blocks.take<char>(encode_workspace<T>(p, m));
        T* const wx = blocks.take<T>(most * p);
        T* const u = blocks.take<T>((panels && stages > 2) || dense ? most * p : 0);
        T* const packed = blocks.take<T>(panels && !kept_panels.data ? p * width : 0);
        T* const z = blocks.take<T>(dense ? most * p : 0);
        if (dense) std::fill_n(z, most * p, T(0));
        each_panel(begin, end, most, [&](int64_t b, int64_t rows) {
            product(b, b + rows, wx);
            TopMCodes<T> out = codes;
            out.values += b * m;
            out.indices += b * m;
            out.saved_values += b * m;
            out.saved_indices += b * m;
            const StepMatrices<T> sm = steps ? steps->matrices() : StepMatrices<T>{};
            switch (path) {
                case Path::rows:
                    kernels.rows(wx, rows, p, sm, out, workspace);
                    break;
                case Path::columns:
                    kernels.columns(wx, rows, p, sm, out, workspace);
                    break;
                case Path::panels:
                    if (kept_panels.data)
                        kernels.panels(wx, rows, p, kept_panels, width, out, u, nullptr, workspace);
                    else
                        kernels.panels(wx, rows, p, sm, width, out, u, packed, workspace);
                    break;
                case Path::dense:
                    encode_dense(wx, rows, p, *steps, out, z, u, workspace);
                    break;
            }
        });
    });
}

/// The same with memory for the results. code: what values are rounded to.
template <class T>
Codes encode(Tensor x, Tensor w, std::optional<Tensor> s, const Bias& bias, int64_t m,
             int64_t stages, bool positive, DType code, bool save) {
    const Matrix<const T> xm = matrix<T>(x), wm = matrix<T>(w);
    const int64_t batch = xm.rows, kept = save ? stages - 1 : 0;
    const ScalarType type = x.scalar_type();
    Tensor values = fresh({batch, m}, type), indices = fresh({batch, m}, ScalarType::Long);
    Tensor saved_values = values, saved_indices = indices;
    if (save) {
        saved_values = fresh({kept, batch, m}, type);
        saved_indices = fresh({kept, batch, m}, ScalarType::Long);
    }
    if (batch == 0) return {values, indices, saved_values, saved_indices};
    std::optional<StepsInMemory<T>> steps;
    if (s) steps = steps_in_memory<T>(*s, wm.rows);
    const Tensor &below = kept > 0 ? saved_values : values,
                 &at = kept > 0 ? saved_indices : indices;
    const TopMCodes<T> codes{static_cast<T*>(values.mutable_data_ptr()),
                             static_cast<int64_t*>(indices.mutable_data_ptr()),
                             static_cast<T*>(below.mutable_data_ptr()),
                             static_cast<int64_t*>(at.mutable_data_ptr()),
                             m,
                             stages,
                             kept > 0 ? batch * m : 0,
                             positive,
                             code};
    encode_to<T>(xm, wm, steps, bias.data<T>(), codes, nullptr);
    return {values, indices, saved_values, saved_indices};
}

}  // namespace

void planned_top_m(const KeptWeights& weights, Matrix<const float> x, int64_t m, int64_t stages,
                   bool positive, float* values, int64_t* indices) {
    const Matrix<const float> w = weights.w;
    if (stages == 1 && screens(x.rows, x.cols, w.rows, m)) {
        screen_top_m(x, w, weights.bias, positive, {values, indices, m}, &weights.kept);
        return;
    }
    std::optional<StepsInMemory<float>> steps;
    Tensor s;
    if (stages > 1) {
        s = *weights.s;
        steps = steps_in_memory<float>(s, w.rows);
    }
    const TopMCodes<float> codes{values, indices, values,   indices,     m,
                                 stages, 0,       positive, weights.code};
    if ((stages == 1 || sums_pay<float>(w.rows, m)) &&
        screens_few(x.rows, x.cols, w.rows, m, weights.kept)) {
        std::optional<Steps<float>> rows;
        if (steps) rows.emplace(*steps, w.rows, true, false, &weights.kept);
        screen_few(x, w, weights.bias, {}, rows ? rows->matrices() : StepMatrices<float>{},
                   steps ? steps->matrices : 0, codes, weights.kept,
                   [&](int64_t r, const TopMCodes<float>& to) {
                       encode_to<float>(x.range(r, r + 1), w, steps, weights.bias, to,
                                        &weights.kept);
                   });
        return;
    }
    encode_to<float>(x, w, steps, weights.bias, codes, &weights.kept);
}

Codes encode_top_m(Tensor x, Tensor W, std::optional<Tensor> S, std::optional<Tensor> bias,
                   int64_t m, int64_t num_stages, bool positive, bool save) {
    check_encoder(x, W, S, num_stages, "encode_top_m");
    check_m(m, W.size(0));
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const DType code = dtype_of(x, "x");
    const Bias b("encode_top_m", bias, x, W.size(0));
    x = cast(x, type);
    W = cast(W, type);
    if (num_stages == 1)
        S.reset();
    else
        S = cast_matrix(*S, type);
    Codes codes;
    if (type == ScalarType::Double) {
        codes = encode<double>(x, W, S, b, m, num_stages, positive, code, save);
    } else if (num_stages == 1 && screens(x.size(0), x.size(1), W.size(0), m)) {
        auto [values, indices] = screen_top_m(x, W, b.data<float>(), m, positive);
        codes = {values, indices, values, indices};
        if (save) {
            std::get<2>(codes) = fresh({0, x.size(0), m}, type);
            std::get<3>(codes) = fresh({0, x.size(0), m}, ScalarType::Long);
        }
    } else {
        codes = encode<float>(x, W, S, b, m, num_stages, positive, code, save);
    }
    std::get<0>(codes) = cast(std::get<0>(codes), given);
    return codes;
}

}  // namespace deepl0::torch_ops
