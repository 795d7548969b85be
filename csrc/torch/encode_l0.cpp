// Forward of encode_l0: u_1 = x W' + b, z_k = h(u_k), u_{k+1} = u_1 + z_k S'.
//
// How many entries of z_k are not 0 is known only row by row. A row with few takes the gather-sum
// of rows of S', one with many joins the others of its panel in a dense product. Bytes and flops of
// a sparse row are those of encode_top_m with m its number of nonzeros. Workspace: O(threads *
// panel).
#include <cstring>
#include <optional>
#include <tuple>

#include "core/unit_lists.h"
#include "torch/product.h"
#include "torch/stage_thresholds.h"

namespace deepl0::torch_ops {
namespace {

/// Where S z of a row is cheaper as a gather-sum, and how.
struct Plan {
    bool by_rows;    // S' is there and in L2: row by row
    bool by_panels;  // beyond L2: column panels, packed on the fly
    int64_t most;    // nonzeros of a sparse row
    int64_t width;   // of the column panels
    int64_t rows;    // of a panel of x
};

template <class T>
Plan make_plan(int64_t batch, int64_t p, int64_t steps, bool s_by_columns) {
    const int64_t size = sizeof(T), l2 = l2_bytes();
    const bool in_l2 = p * p * size * 3 <= l2 * 2;
    const bool enough = batch * steps >= (in_l2 ? 14 : 6);
    if ((in_l2 && (enough || s_by_columns)) || (batch <= kFew && s_by_columns))
        return {true, false, p * 3 / 10, p, panel_rows(p, size, 256)};
    if (!in_l2 && enough) {
        const int64_t width = std::clamp<int64_t>(l2 / 4 / (p * size) / 16 * 16, 16, 256);
        return {false, true, p / 4, width, panel_rows(p, size, 1024)};
    }
    return {false, false, 0, p, panel_rows(p, size, 256)};
}

/// The buffers of one thread.
template <class T>
struct Panel {
    Buffer<T> wx, u, z, product, value, packed;
    Buffer<int32_t> index, start;
    std::vector<int64_t> dense_rows;

    Panel(const Plan& plan, int64_t rows, int64_t p, int64_t steps)
        : wx(rows * p),
          u(rows * p),
          z(steps > 0 ? rows * p : 0),
          product(steps > 0 ? rows * p : 0),
          value((plan.by_panels ? rows * plan.most : 0) + p + 16),
          packed(plan.by_panels ? p * plan.width : 0),
          index((plan.by_panels ? rows * plan.most : 0) + p + 16),
          start(rows + 1) {}
};

/// u[r, :] = wx[r, :] + z[r, :] S' for the rows of dense_rows, whose z stand at the front of
/// panel.z.
template <class T>
void add_dense(Panel<T>& panel, const T* wx, int64_t rows, int64_t p, Matrix<const T> s, T* u) {
    const int64_t n = int64_t(panel.dense_rows.size());
    if (n == 0) return;
    T* product = n == rows ? u : panel.product.get();
    T* const z = panel.z.get();
    if (rows <= kFew && s.col_stride == 1) {
        few_product<T>(z, p, n, s, nullptr, 0, product);
    } else {
        // Rows of zeros make up the least number, so that the others of a panel, which depend on
        // the number of threads, change no bit of a row.
        const int64_t some = std::max(n, std::min(rows, kLeastRows));
        std::fill_n(z + n * p, (some - n) * p, T(0));
        mm<T>(row_major(product, some, p), row_major<const T>(z, some, p), s.transposed());
    }
    for (int64_t d = 0; d < n; ++d) {
        const int64_t at = panel.dense_rows[d] * p;
        for (int64_t i = 0; i < p; ++i) u[at + i] = wx[at + i] + product[d * p + i];
    }
}

/// u[:, c : c + n] = wx + z S' panel by panel of S', for the sparse rows of the lists.
template <class T>
void add_by_panels(Panel<T>& panel, const T* wx, int64_t rows, int64_t p, int64_t width,
                   Matrix<const T> s, T* u) {
    const SparseRows<T> z{panel.index.get(), panel.value.get(), panel.start.get(), 0};
    for (int64_t c = 0; c < p; c += width) {
        const int64_t n = std::min(width, p - c);
        if (s.col_stride == 1) {
            encode_kernels<T>().transpose(s.data + c * p, n, p, 0, n, panel.packed.get());
        } else {
            for (int64_t j = 0; j < p; ++j)
                memcpy(panel.packed.get() + j * n, s.data + j * p + c, size_t(n) * sizeof(T));
        }
        unit_kernels<T>().gather(z, rows, panel.packed.get(), n, n, wx + c, u + c, p);
    }
}

/// One step: u = wx + h(below) S'.
template <class T>
void step(const Plan& plan, const StageThresholds& h, int64_t k, Panel<T>& panel, const T* below,
          const T* wx, int64_t rows, int64_t p, const Steps<T>& steps, T* u) {
    const Matrix<const T> s = steps[k];
    panel.dense_rows.clear();
    int32_t* start = panel.start.get();
    start[0] = 0;
    for (int64_t r = 0; r < rows; ++r) {
        T* z = panel.z.get() + int64_t(panel.dense_rows.size()) * p;
        h.apply(k, below + r * p, 1, p, z);
        start[r + 1] = start[r];
        const int64_t at = plan.by_panels ? start[r] : 0;
        int32_t* index = panel.index.get() + at;
        T* value = panel.value.get() + at;
        const int64_t n =
            plan.most > 0 ? unit_kernels<T>().compress(z, p, index, value) : plan.most + 1;
        if (n > plan.most) {
            panel.dense_rows.push_back(r);
        } else if (plan.by_rows) {
            unit_kernels<T>().gather({index, value, nullptr, n}, 1,
                                     steps.matrices().data + k * steps.matrices().step_stride, p, p,
                                     wx + r * p, u + r * p, p);
        } else {
            start[r + 1] += int32_t(n);
        }
    }
    if (plan.by_panels && int64_t(panel.dense_rows.size()) < rows)
        add_by_panels(panel, wx, rows, p, plan.width, s, u);
    add_dense(panel, wx, rows, p, s, u);
}

template <class T>
std::tuple<Tensor, Tensor> encode(Tensor x, Tensor w, std::optional<Tensor> s, const Bias& bias,
                                  const StageThresholds& h, int64_t stages, bool save) {
    const Matrix<const T> xm = matrix<T>(x), wm = matrix<T>(w);
    const int64_t batch = xm.rows, p = wm.rows;
    Tensor z = torch::stable::new_empty(x, {batch, p});
    Tensor saved = torch::stable::new_empty(x, {save ? stages : 0, batch, p});
    if (batch == 0) return {z, saved};
    const bool by_columns = s && s->stride(s->dim() - 2) == 1 && p > 1;
    const Plan plan = make_plan<T>(batch, p, stages - 1, by_columns);
    std::optional<Steps<T>> steps;
    if (s) steps.emplace(*s, p, plan.by_rows);
    T* out = static_cast<T*>(z.mutable_data_ptr());
    T* kept = save ? static_cast<T*>(saved.mutable_data_ptr()) : nullptr;
    const RowProduct<T> product(xm, wm, bias.data<T>());

    each_range(batch, [&](int64_t begin, int64_t end) {
        const int64_t most = std::min(plan.rows, end - begin);
        Panel<T> panel(plan, most, p, stages - 1);
        each_panel(begin, end, most, [&](int64_t b, int64_t rows) {
            const auto u_of = [&](int64_t k) {
                if (kept) return kept + (k * batch + b) * p;
                return k == 0 ? panel.wx.get() : panel.u.get();
            };
            T* wx = u_of(0);
            product(b, b + rows, wx);
            for (int64_t k = 0; k + 1 < stages; ++k)
                step(plan, h, k, panel, u_of(k), wx, rows, p, *steps, u_of(k + 1));
            h.apply(stages - 1, u_of(stages - 1), rows, p, out + b * p);
        });
    });
    return {z, saved};
}

}  // namespace

std::tuple<Tensor, Tensor> encode_l0(Tensor x, Tensor W, std::optional<Tensor> S,
                                     std::optional<Tensor> bias, Tensor theta, int64_t num_stages,
                                     double sigma, std::string kind, bool save) {
    check_encoder(x, W, S, num_stages, "encode_l0");
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const StageThresholds h("encode_l0", theta, num_stages, W.size(0), type, sigma, kind);
    if (num_stages == 1)
        S.reset();
    else
        S = cast_matrix(*S, type);
    const Bias b("encode_l0", bias, x, W.size(0));
    const auto run = type == ScalarType::Double ? encode<double> : encode<float>;
    auto [z, saved] = run(cast(x, type), cast(W, type), S, b, h, num_stages, save);
    return {cast(z, given), saved};
}

}  // namespace deepl0::torch_ops
