// One stage: the products of a panel of rows into its output, then threshold or selection in place
// while the panel is in cache. 2 B p (n + p) flops, no workspace beyond the output.
#include <tuple>

#include "core/thresholds.h"
#include "core/top_m.h"
#include "torch/panels.h"

namespace deepl0::torch_ops {
namespace {

/// u = x W' + b + z S' for panels of rows, each followed by finish(first, rows).
template <class T, class F>
void stage(Tensor x, Tensor w, Tensor z, Tensor s, const T* bias, T* u, const F& finish) {
    const Matrix<const T> xm = matrix<T>(x), zm = matrix<T>(z);
    const Matrix<const T> wt = matrix<T>(w).transposed(), st = matrix<T>(s).transposed();
    const int64_t batch = xm.rows, p = wt.cols;
    each_range(batch, [&](int64_t begin, int64_t end) {
        each_panel(begin, end, panel_rows(p, sizeof(T), 256), [&](int64_t b, int64_t rows) {
            const Matrix<T> panel = row_major(u + b * p, rows, p);
            if (bias)
                addmm<T>(panel, {bias, rows, p, 0, 1}, xm.range(b, b + rows), wt);
            else
                mm<T>(panel, xm.range(b, b + rows), wt);
            addmm<T>(panel, row_major<const T>(panel.data, rows, p), zm.range(b, b + rows), st);
            finish(b, rows);
        });
    });
}

void check_stage(const Tensor& x, const Tensor& w, const Tensor& z, const Tensor& s,
                 const char* op) {
    check_encoder(x, w, s, 2, op);
    STD_TORCH_CHECK(s.dim() == 2 && z.dim() == 2 && z.size(0) == x.size(0) &&
                        z.size(1) == w.size(0) && z.scalar_type() == x.scalar_type(),
                    op, ": z must be [B, p] in the dtype of x, S [p, p]");
}

}  // namespace

std::tuple<Tensor, Tensor> threshold_stage(Tensor x, Tensor W, Tensor z, Tensor S,
                                           std::optional<Tensor> bias, Tensor theta, double sigma,
                                           Threshold h, bool save) {
    check_stage(x, W, z, S, "threshold_stage");
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const int64_t batch = x.size(0), p = W.size(0);
    STD_TORCH_CHECK(theta.scalar_type() == type &&
                        (theta.dim() == 0 || (theta.dim() == 1 && theta.size(0) == p)),
                    "threshold_stage: theta must be [] or [p] in the accumulation dtype");
    check_sigma("threshold_stage", sigma);
    theta = torch::stable::contiguous(theta);
    check_theta("threshold_stage", h, theta);
    const Bias b("threshold_stage", bias, x, p);
    Tensor out = empty(x, {batch, p}, type);
    Tensor saved = empty(x, {save ? batch : 0, p}, type);
    const DType dtype = dtype_of(out, "x");
    const Tensor& u = save ? saved : out;
    void* out_data = out.mutable_data_ptr();
    const auto run = [&](auto* data) {
        using T = std::remove_pointer_t<decltype(data)>;
        stage<T>(cast(x, type), cast(W, type), cast(z, type), cast(S, type), b.data<T>(), data,
                 [&](int64_t first, int64_t rows) {
                     threshold_kernels().threshold(dtype, h, data, p, theta.const_data_ptr(),
                                                   theta.dim() == 1, sigma, out_data, p, p, first,
                                                   first + rows);
                 });
    };
    if (type == ScalarType::Double)
        run(static_cast<double*>(u.mutable_data_ptr()));
    else
        run(static_cast<float*>(u.mutable_data_ptr()));
    return {cast(out, given), saved};
}

std::tuple<Tensor, Tensor> top_m_stage(Tensor x, Tensor W, Tensor z, Tensor S,
                                       std::optional<Tensor> bias, int64_t m, bool positive) {
    check_stage(x, W, z, S, "top_m_stage");
    const ScalarType given = x.scalar_type(), type = accumulation_type(x);
    const int64_t batch = x.size(0), p = W.size(0);
    check_m(m, p);
    const Bias b("top_m_stage", bias, x, p);
    Tensor out = empty(x, {batch, p}, type);
    Tensor mask = empty(x, {batch, mask_bytes(p)}, ScalarType::Byte);
    const DType dtype = dtype_of(out, "x");
    auto* bits = static_cast<uint8_t*>(mask.mutable_data_ptr());
    const auto run = [&](auto* data) {
        using T = std::remove_pointer_t<decltype(data)>;
        stage<T>(cast(x, type), cast(W, type), cast(z, type), cast(S, type), b.data<T>(), data,
                 [&](int64_t first, int64_t rows) {
                     const Buffer<char> workspace(int64_t(top_m_workspace_bytes(dtype, p, m)));
                     top_m_kernels().keep_top_m(dtype, data, p, p, m, positive, data, p, bits,
                                                first, first + rows, workspace.get());
                 });
    };
    if (type == ScalarType::Double)
        run(static_cast<double*>(out.mutable_data_ptr()));
    else
        run(static_cast<float*>(out.mutable_data_ptr()));
    return {cast(out, given), mask};
}

}  // namespace deepl0::torch_ops
