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
#include "torch/planned.h"
#include "torch/product.h"

namespace deepl0::torch_ops {
namespace {

/// Where S z of a row is cheaper as a gather-sum, and how S' is read for it.
struct Plan {
    enum class By { rows, columns, panels } by;  // of S', of S as it is, of S' in column panels
    int64_t most;                                // nonzeros of a sparse row
    int64_t width;                               // of the panels
    int64_t rows;                                // of a panel of x
};

/// `most` does not depend on how S lies or what is kept, so that no bit does.
template <class T>
Plan make_plan(int64_t batch, int64_t p, bool s_by_columns, bool kept) {
    const int64_t size = sizeof(T), width = panel_width<T>(p, kept);
    const bool in_l2 = p * p * size * 3 <= l2_bytes() * 2, few = batch <= kFew;
    const int64_t most = few ? p / 8 : in_l2 ? p * 3 / 10 : p / 4;
    const int64_t rows = panel_rows(p, size, 256);
    if (few && !s_by_columns && !kept) return {Plan::By::columns, most, width, rows};
    if (in_l2 || few) return {Plan::By::rows, most, width, rows};
    return {Plan::By::panels, most, width, panel_rows(p, size, 1024)};
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
          value((plan.by == Plan::By::panels ? rows * plan.most : 0) + p + 16),
          packed(plan.by == Plan::By::panels ? p * plan.width : 0),
          index((plan.by == Plan::By::panels ? rows * plan.most : 0) + p + 16),
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
                   const Steps<T>& steps, int64_t k, T* u) {
    const SparseRows<T> z{panel.index.get(), panel.value.get(), panel.start.get(), 0};
    const StepMatrices<T> kept = steps.panels();
    for (int64_t c = 0; c < p; c += width) {
        const int64_t n = std::min(width, p - c);
        const T* packed = panel.packed.get();
        if (kept.data)
            packed = kept.data + k * kept.step_stride + c * p;
        else
            pack_panel(steps[k], c, n, panel.packed.get());
        unit_kernels<T>().gather(z, rows, packed, n, n, wx + c, u + c, p);
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
        const int64_t at = plan.by == Plan::By::panels ? start[r] : 0;
        int32_t* index = panel.index.get() + at;
        T* value = panel.value.get() + at;
        const int64_t n = unit_kernels<T>().compress(z, p, index, value);
        const T* rows_of = steps.matrices().data + k * steps.matrices().step_stride;
        if (n > plan.most)
            panel.dense_rows.push_back(r);
        else if (plan.by == Plan::By::rows)
            unit_kernels<T>().gather({index, value, nullptr, n}, 1, rows_of, p, p, wx + r * p,
                                     u + r * p, p);
        else if (plan.by == Plan::By::columns)
            unit_kernels<T>().gather_columns({index, value, nullptr, n}, 1, rows_of, p, p,
                                             wx + r * p, u + r * p, p);
        else
            start[r + 1] += int32_t(n);
    }
    if (plan.by == Plan::By::panels && int64_t(panel.dense_rows.size()) < rows)
        add_by_panels(panel, wx, rows, p, plan.width, steps, k, u);
    add_dense(panel, wx, rows, p, s, u);
}

/// The codes of x to out [batch, p], the pre-activations of all stages to saved [stages, batch, p],
/// if any.
template <class T>
void encode_to(Matrix<const T> x, Matrix<const T> w, std::optional<StepsInMemory<T>> s,
               const T* bias, const StageThresholds& h, int64_t stages, T* out, T* saved,
               Kept* kept) {
    const int64_t batch = x.rows, p = w.rows;
    const Plan plan = make_plan<T>(batch, p, s && s->by_columns(), kept != nullptr);
    std::optional<Steps<T>> steps;
    if (s && stages > 1)
        steps.emplace(*s, p, plan.by == Plan::By::rows, plan.by == Plan::By::panels, kept);
    const RowProduct<T> product(x, w, bias, kept);

    each_range(batch, [&](int64_t begin, int64_t end) {
        const int64_t most = std::min(plan.rows, end - begin);
        Panel<T> panel(plan, most, p, stages - 1);
        each_panel(begin, end, most, [&](int64_t b, int64_t rows) {
            const auto u_of = [&](int64_t k) {
                if (saved) return saved + (k * batch + b) * p;
                return k == 0 ? panel.wx.get() : panel.u.get();
            };
            T* wx = u_of(0);
            product(b, b + rows, wx);
            for (int64_t k = 0; k + 1 < stages; ++k)
                step(plan, h, k, panel, u_of(k), wx, rows, p, *steps, u_of(k + 1));
            h.apply(stages - 1, u_of(stages - 1), rows, p, out + b * p);
        });
    });
}

/// The same with memory for the results.
template <class T>
std::tuple<Tensor, Tensor> encode(Tensor x, Tensor w, std::optional<Tensor> s, const Bias& bias,
                                  const StageThresholds& h, int64_t stages, bool save) {
    const Matrix<const T> xm = matrix<T>(x), wm = matrix<T>(w);
    Tensor z = fresh({xm.rows, wm.rows}, x.scalar_type()), saved = z;
    if (save) saved = torch::stable::new_empty(x, {stages, xm.rows, wm.rows});
    if (xm.rows == 0) return {z, saved};
    std::optional<StepsInMemory<T>> steps;
    if (s) steps = steps_in_memory<T>(*s, wm.rows);
    encode_to<T>(xm, wm, steps, bias.data<T>(), h, stages, static_cast<T*>(z.mutable_data_ptr()),
                 save ? static_cast<T*>(saved.mutable_data_ptr()) : nullptr, nullptr);
    return {z, saved};
}

}  // namespace

void planned_l0(const KeptWeights& weights, Matrix<const float> x, const StageThresholds& h,
                int64_t stages, float* z) {
    std::optional<StepsInMemory<float>> steps;
    Tensor s;
    if (stages > 1) {
        s = *weights.s;
        steps = steps_in_memory<float>(s, weights.w.rows);
    }
    encode_to<float>(x, weights.w, steps, weights.bias, h, stages, z, nullptr, &weights.kept);
}

std::tuple<Tensor, Tensor> encode_l0(Tensor x, Tensor W, std::optional<Tensor> S,
                                     std::optional<Tensor> bias, Tensor theta, int64_t num_stages,
                                     double sigma, Threshold kind, bool save) {
    check_encoder(x, W, S, num_stages, "encode_l0");
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const DType code = dtype_of(x, "x");
    const StageThresholds h("encode_l0", theta, num_stages, W.size(0), code, sigma, kind);
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
