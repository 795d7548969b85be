// Forward of encode_l0 with D: u_1 = step_1 W x + b, z_k = h(u_k),
// u_{k+1} = z_k + step_{k+1} W (x - D z_k) + b, a panel of rows through all stages.
//
// How many entries of z_k are not 0 is known only then: a panel with few has its residual as a
// gather-sum of atoms, another as a dense product. At most 2 B p n (2 K - 1) flops; workspace
// O(threads * panel), and a copy of D' where D is not a transposed view.
#include <tuple>

#include "torch/factored.h"
#include "torch/planned.h"
#include "torch/product.h"

namespace deepl0::torch_ops {
namespace {

/// The codes of x to out [batch, p], the pre-activations of all stages to saved [stages, batch, p],
/// if any.
template <class T>
void encode_to(Matrix<const T> x, Matrix<const T> w, const Tensor& d, const T* bias,
               const std::vector<T>& steps, const StageThresholds& h, T* out, T* saved,
               Kept* kept) {
    const int64_t batch = x.rows, n = x.cols, p = w.rows, stages = int64_t(steps.size());
    const StageProduct<T> product(w, bias, batch, true, kept);
    const Residuals<T> residuals(x, d, stages > 1 ? batch * p : 0, stages > 1 ? kept : nullptr);

    each_range(batch, [&](int64_t begin, int64_t end) {
        const int64_t most = std::min(panel_rows(p, sizeof(T), 256), end - begin);
        const Buffer<T> r(most * n), u(saved ? 0 : most * p);
        const Listed<T> listed(stages > 1 ? most : 0, p);
        each_panel(begin, end, most, [&](int64_t b, int64_t rows) {
            T* const code = out + b * p;
            for (int64_t k = 0; k < stages; ++k) {
                T* const uk = saved ? saved + (k * batch + b) * p : u.get();
                if (k == 0)
                    residuals(b, rows, Codes<T>{}, steps[0], r.get());
                else
                    residuals(b, rows, code, listed(code, rows), steps[size_t(k)], r.get());
                product(row_major<const T>(r.get(), rows, n), uk);
                for (int64_t e = 0; k > 0 && e < rows * p; ++e) uk[e] += code[e];
                h.apply(k, uk, rows, p, code);
            }
        });
    });
}

/// The same with memory for the results.
template <class T>
std::tuple<Tensor, Tensor> encode(Tensor x, Tensor w, const Tensor& d, const Bias& bias,
                                  const std::vector<T>& steps, const StageThresholds& h,
                                  bool save) {
    const Matrix<const T> xm = row_major_matrix<T>(x), wm = matrix<T>(w);
    Tensor z = fresh({xm.rows, wm.rows}, x.scalar_type()), saved = z;
    if (save) saved = torch::stable::new_empty(x, {int64_t(steps.size()), xm.rows, wm.rows});
    if (xm.rows > 0)
        encode_to<T>(xm, wm, d, bias.data<T>(), steps, h, static_cast<T*>(z.mutable_data_ptr()),
                     save ? static_cast<T*>(saved.mutable_data_ptr()) : nullptr, nullptr);
    return {z, saved};
}

}  // namespace

void planned_l0_factored(const KeptWeights& weights, Matrix<const float> x,
                         const StageThresholds& h, const std::vector<float>& steps, float* z) {
    encode_to<float>(x, weights.w, *weights.d, weights.bias, steps, h, z, nullptr, &weights.kept);
}

std::tuple<Tensor, Tensor> encode_l0_factored(Tensor x, Tensor W, Tensor D,
                                              std::optional<Tensor> bias,
                                              std::optional<Tensor> step, Tensor theta,
                                              int64_t num_stages, double sigma, Threshold kind,
                                              bool save) {
    const char* op = "encode_l0_factored";
    check_factored(x, W, D, op);
    STD_TORCH_CHECK(num_stages >= 1, op, ": num_stages must be at least 1, got ", num_stages);
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const DType code = dtype_of(x, "x");
    const StageThresholds h(op, theta, num_stages, W.size(0), code, sigma, kind);
    const Bias b(op, bias, x, W.size(0));
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        return encode<T>(cast(x, type), cast(W, type), cast_matrix(D, type), b,
                         steps_of<T>(op, step, num_stages), h, save);
    };
    auto [z, saved] = type == ScalarType::Double ? run(double()) : run(float());
    return {cast(z, given), saved};
}

}  // namespace deepl0::torch_ops
