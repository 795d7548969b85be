#include <optional>
#include <tuple>

#include "core/encode.h"
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

struct Plan {
    Path path;
    int64_t rows;   // of a panel
    int64_t width;  // of the column panels of S'
};

/// steps: products with S per row; packings: of S'. Measured on one core of an Intel with 2 MiB of
/// L2, float32: the gather-sum costs 0.014 m us a row at p = 512 and 0.065 m at p = 2048 (panels),
/// the dense product 2.6 and 42 us, so they meet at m = 0.45 p (L2) and 0.35 p (panels). A
/// transposed copy of S costs 0.05 ms and 1.3 ms, which 14 and 6 rows repay; few rows read S as it
/// is. On a Zen 5 with 1 MiB the same choices are the best or within 15 % of it, but that the BLAS
/// is slow there (product_pays), so that the sums win up to 0.75 p.
template <class T>
Plan make_plan(int64_t batch, int64_t p, int64_t m, int64_t steps, int64_t packings,
               bool s_by_columns) {
    const int64_t size = sizeof(T), l2 = l2_bytes(), panel = panel_rows(p, size, 256);
    const Plan rows{Path::rows, panel, p}, dense{Path::dense, panel, p};
    if (steps == 0 || m == 0) return rows;
    const bool in_l2 = p * p * size * 3 <= l2 * 2;
    const bool few = batch <= kFew, sparse = m * 20 <= p * (product_pays() ? 15 : 9);
    if (s_by_columns) {
        if (few || (in_l2 && sparse)) return rows;
        if (!in_l2 && m * 14 < p && batch * m * steps <= 4 * p * packings) return rows;
    } else {
        if (few && m * 16 <= p) return {Path::columns, panel, p};
        if (few || batch * steps < (in_l2 ? 14 : 6) * packings) return dense;
        if (in_l2 && sparse) return rows;
    }
    if (in_l2 || m * 3 > p) return dense;
    const int64_t width = std::clamp<int64_t>(l2 / 4 / (p * size) / 16 * 16, 16, 256);
    return {Path::panels, panel_rows(p, size, 1024), width};
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

template <class T>
Codes encode(Tensor x, Tensor w, std::optional<Tensor> s, const Bias& bias, int64_t m,
             int64_t stages, bool positive, bool save) {
    const Matrix<const T> xm = matrix<T>(x), wm = matrix<T>(w);
    const int64_t batch = xm.rows, p = wm.rows, kept = save ? stages - 1 : 0;
    const ScalarType type = x.scalar_type();
    Tensor values = fresh({batch, m}, type), indices = fresh({batch, m}, ScalarType::Long);
    Tensor saved_values = fresh({kept, batch, m}, type);
    Tensor saved_indices = fresh({kept, batch, m}, ScalarType::Long);
    if (batch == 0) return {values, indices, saved_values, saved_indices};

    const bool by_columns = s && s->stride(s->dim() - 2) == 1 && p > 1;
    const int64_t packings = s && s->dim() == 3 ? stages - 1 : 1;
    const Plan plan = make_plan<T>(batch, p, m, stages - 1, packings, by_columns);
    std::optional<Steps<T>> steps;
    if (s) steps.emplace(*s, p, plan.path == Path::rows);
    const auto codes_of = [m, stages, positive](const Tensor& v, const Tensor& i, const Tensor& sv,
                                                const Tensor& si, int64_t saved_stride) {
        return TopMCodes<T>{static_cast<T*>(v.mutable_data_ptr()),
                            static_cast<int64_t*>(i.mutable_data_ptr()),
                            static_cast<T*>(sv.mutable_data_ptr()),
                            static_cast<int64_t*>(si.mutable_data_ptr()),
                            m,
                            stages,
                            saved_stride,
                            positive};
    };
    const TopMCodes<T> codes =
        kept > 0 ? codes_of(values, indices, saved_values, saved_indices, batch * m)
                 : codes_of(values, indices, values, indices, 0);
    const auto& kernels = encode_kernels<T>();
    const RowProduct<T> product(xm, wm, bias.data<T>());

    each_range(batch, [&](int64_t begin, int64_t end) {
        const int64_t most = std::min(plan.rows, end - begin);
        Blocks blocks;
        void* const workspace = blocks.take<char>(encode_workspace<T>(p, m));
        T* const wx = blocks.take<T>(most * p);
        const bool panels = plan.path == Path::panels, dense = plan.path == Path::dense;
        T* const u = blocks.take<T>((panels && stages > 2) || dense ? most * p : 0);
        T* const packed = blocks.take<T>(panels ? p * plan.width : 0);
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
            switch (plan.path) {
                case Path::rows:
                    kernels.rows(wx, rows, p, sm, out, workspace);
                    break;
                case Path::columns:
                    kernels.columns(wx, rows, p, sm, out, workspace);
                    break;
                case Path::panels:
                    kernels.panels(wx, rows, p, sm, plan.width, out, u, packed, workspace);
                    break;
                case Path::dense:
                    encode_dense(wx, rows, p, *steps, out, z, u, workspace);
                    break;
            }
        });
    });
    return {values, indices, saved_values, saved_indices};
}

}  // namespace

Codes encode_top_m(Tensor x, Tensor W, std::optional<Tensor> S, std::optional<Tensor> bias,
                   int64_t m, int64_t num_stages, bool positive, bool save) {
    check_encoder(x, W, S, num_stages, "encode_top_m");
    check_m(m, W.size(0));
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const Bias b("encode_top_m", bias, x, W.size(0));
    x = cast(x, type);
    W = cast(W, type);
    if (num_stages == 1)
        S.reset();
    else
        S = cast_matrix(*S, type);
    Codes codes;
    if (type == ScalarType::Double) {
        codes = encode<double>(x, W, S, b, m, num_stages, positive, save);
    } else if (num_stages == 1 && screens(x.size(0), x.size(1), W.size(0), m)) {
        auto [values, indices] = screen_top_m(x, W, b.data<float>(), m, positive);
        codes = {values, indices, fresh({0, x.size(0), m}, type),
                 fresh({0, x.size(0), m}, ScalarType::Long)};
    } else {
        codes = encode<float>(x, W, S, b, m, num_stages, positive, save);
    }
    std::get<0>(codes) = cast(std::get<0>(codes), given);
    return codes;
}

}  // namespace deepl0::torch_ops
