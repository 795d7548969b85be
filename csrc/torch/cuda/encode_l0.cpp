// The encoder of thresholds: torch's products, and a kernel for the threshold between them; of half
// types, where that is asked for, one kernel a stage.
#include "torch/cuda/encode.h"
#include "torch/cuda/ops.h"
#include "torch/cuda/threshold_stage.h"
#include "torch/cuda/thresholds.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

constexpr auto kF32 = cuda::DType::f32;

/// z_K and, if `save`, the pre-activations of all stages [K, B, p]. Bytes beside the products: u
/// read and z written, once a stage. z has the type of x, so that half types multiply as they are;
/// W x + b is then added by the threshold's kernel, one more read of [B, p].
std::tuple<Tensor, Tensor> encode(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s,
                                  const std::optional<Tensor>& bias, const Tensor& theta,
                                  int64_t stages, double sigma, Threshold kind, bool save) {
    check_operands("encode_l0", x, w, s, bias, stages);
    const int64_t batch = x.size(0), p = w.size(0);
    Call call(x);
    const cudaStream_t stream = call.stream();
    const Thresholds thresholds("encode_l0", x, theta, p, sigma, kind, stages);
    const ScalarType type = x.scalar_type();
    const bool half = type != ScalarType::Float;
    Tensor out = empty(x, {batch, p}, type);
    Tensor saved = empty(x, {save ? stages : 0, batch, p}, ScalarType::Float);
    if (fuses(x)) {
        run_stages(x, w, s, bias, thresholds, stages, out, saved, stream);
        return {out, saved};
    }
    Workspace workspace;
    Piece wx_piece, u_piece, z_piece;
    if (!save) {
        wx_piece = workspace.floats(batch * p);
        if (stages > (half ? 1 : 2)) u_piece = workspace.floats(batch * p);
    }
    if (stages > 1) z_piece = workspace.bytes(batch * p * int64_t(x.element_size()));
    FirstProduct first(x, w, bias, batch, workspace);
    workspace.allocate(x);
    const auto u_of = [&](int64_t k) {
        if (save) return view(saved, batch, p, p, 1, k * batch * p);
        // torch's last sum may stand in the place of its first term.
        const bool there = k == 0 || (!half && k + 1 == stages);
        return workspace.matrix(there ? wx_piece : u_piece, batch, p);
    };
    Tensor wx = u_of(0), u = wx;
    first.run(wx, x, workspace, stream);
    for (int64_t k = 0; k < stages; ++k) {
        const bool last = k + 1 == stages;
        const cuda::Threshold h = thresholds.of_stage(k);
        void* z = last ? mutable_data_of(out) : workspace.at<void>(z_piece);
        if (k > 0) {
            const Tensor below = workspace.matrix(z_piece, batch, p, type);
            const Tensor step = transposed(stage_matrix(*s, k - 1));
            u = u_of(k);
            half ? product(u, below, step) : add_product(u, wx, below, step);
        }
        if (k > 0 && half)
            cuda::threshold_of_sum(h, mutable_data_of<float>(u), data_of<float>(wx), save, batch, p,
                                   dtype_of(x, "x"), z, stream);
        else
            cuda::threshold(h, kF32, data_of(u), p, batch, p, dtype_of(x, "x"), z, stream);
    }
    return {out, saved};
}

}  // namespace

Tensor encode_l0(Tensor x, Tensor w, std::optional<Tensor> s, std::optional<Tensor> bias,
                 Tensor theta, int64_t stages, double sigma, Threshold kind) {
    return std::get<0>(encode(x, w, s, bias, theta, stages, sigma, kind, false));
}

std::tuple<Tensor, Tensor> encode_l0_saving(Tensor x, Tensor w, std::optional<Tensor> s,
                                            std::optional<Tensor> bias, Tensor theta,
                                            int64_t stages, double sigma, Threshold kind) {
    return encode(x, w, s, bias, theta, stages, sigma, kind, true);
}

/// du_K = grad h'(u_K); dS += du_{k+1}' z_k and du_k = (du_{k+1} S) h'(u_k); dW = (sum du)' x, db =
/// sum du, dx = (sum du) W. Of half types du and its sum are rounded to the type before they are
/// multiplied, as z is; the sum itself is float32.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> encode_l0_backward(
    Tensor grad_z, Tensor saved, Tensor x, Tensor w, std::optional<Tensor> s, Tensor theta,
    double sigma, Threshold kind, int64_t mask) {
    const char* op = "encode_l0_backward";
    STD_TORCH_CHECK(saved.dim() == 3, op, ": saved must be [K, B, p]");
    const int64_t stages = saved.size(0), batch = x.dim() == 2 ? x.size(0) : 0;
    check_operands(op, x, w, s, std::nullopt, stages);
    const int64_t n = x.size(1), p = w.size(0);
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(shape_of(saved) == std::vector<int64_t>({stages, batch, p}) &&
                        shape_of(grad_z) == std::vector<int64_t>({batch, p}) &&
                        grad_z.scalar_type() == type,
                    op, ": grad_z and saved do not fit");
    Call call(x);
    const cudaStream_t stream = call.stream();
    same_device(x, grad_z, "grad_z");
    saved = like(x, saved, ScalarType::Float, "saved");
    const Thresholds thresholds(op, x, theta, p, sigma, kind, stages);
    const bool wants_x = wants(mask, 0), wants_w = wants(mask, 1), wants_s = s && wants(mask, 2),
               wants_theta = wants(mask, 3), wants_bias = wants(mask, 4);
    const bool wants_total = wants_x || wants_w || wants_bias;

    Tensor grad_x = empty_if(wants_x, x, {batch, n}), grad_w = empty_if(wants_w, x, {p, n}),
           grad_bias = empty_if(wants_bias, x, {p});
    Tensor grad_s = empty(x, wants_s ? shape_of(*s) : std::vector<int64_t>{0}, type);
    Tensor grad_theta =
        empty(x, wants_theta ? shape_of(theta) : std::vector<int64_t>{0}, ScalarType::Float);
    if (mask == 0) return {grad_x, grad_w, grad_s, grad_theta, grad_bias};

    Workspace workspace;
    Piece du_piece, dz_piece, z_piece, total_piece, sums_piece;
    const bool steps = stages > 1;
    // What one S collects from several steps is one product over all of their rows.
    const int64_t together = wants_s && s->dim() == 2 ? stages - 1 : 1;
    const int64_t bytes = batch * p * int64_t(x.element_size());
    if (steps) du_piece = workspace.bytes(together * bytes);
    if (steps) dz_piece = workspace.floats(batch * p);
    if (wants_s) z_piece = workspace.bytes(together * bytes);
    if (wants_total) total_piece = workspace.floats(batch * p);
    if (wants_bias) sums_piece = workspace.floats(cuda::column_sums_workspace(batch, p));
    std::optional<GradientOfTheta> of_theta;
    if (wants_theta) of_theta.emplace(thresholds, batch, p, workspace);
    workspace.allocate(x);

    const auto* u = data_of<float>(saved);
    const auto u_of = [&](int64_t k) { return u ? u + k * batch * p : nullptr; };
    const Rows grad(grad_z, "grad_z");
    cuda::ThresholdBackward a{};
    a.grad_dtype = dtype_of(grad_z, "grad_z");
    a.grad = data_of(grad.tensor);
    a.grad_stride = grad.stride;
    a.u_dtype = kF32;
    a.grad_u_dtype = dtype_of(x, "x");
    a.u_stride = p;
    a.rows = batch;
    a.p = p;
    a.total = workspace.at<float>(total_piece);
    // Of dS alone the first stage's du is for nothing.
    const int64_t lowest = wants_total || wants_theta ? 0 : 1;
    const auto at_step = [&](Piece piece, int64_t k) {
        auto* data = workspace.at<char>(piece);
        return data && together > 1 ? data + (k - 1) * bytes : data;
    };
    for (int64_t k = stages - 1; k >= lowest; --k) {
        a.u = u_of(k);
        a.grad_u = k > 0 ? at_step(du_piece, k) : nullptr;
        a.add_total = k + 1 < stages;
        if (of_theta) of_theta->into(a, workspace);
        cuda::threshold_backward(thresholds.of_stage(k), a, stream);
        if (of_theta) of_theta->stage_done(k, grad_theta, workspace, stream);
        if (k == 0) break;
        if (wants_s) {
            cuda::threshold(thresholds.of_stage(k - 1), kF32, u_of(k - 1), p, batch, p,
                            dtype_of(x, "x"), at_step(z_piece, k), stream);
            if (s->dim() == 3) {
                Tensor out = view(grad_s, p, p, p, 1, (k - 1) * p * p);
                product(out, transposed(workspace.matrix(du_piece, batch, p, type)),
                        workspace.matrix(z_piece, batch, p, type));
            } else if (k == 1) {
                product(grad_s, transposed(workspace.matrix(du_piece, together * batch, p, type)),
                        workspace.matrix(z_piece, together * batch, p, type));
            }
        }
        if (k == lowest) break;
        Tensor dz = workspace.matrix(dz_piece, batch, p);
        const Tensor du = workspace.matrix(du_piece, together * batch, p, type);
        product(dz, rows_of(du, together > 1 ? (k - 1) * batch : 0, batch),
                stage_matrix(*s, k - 1));
        a.grad = workspace.at<float>(dz_piece);
        a.grad_dtype = kF32;
        a.grad_stride = p;
    }
    if (of_theta) of_theta->done(grad_theta, workspace, stream);
    if (wants_total) {
        const Tensor total = cast(workspace.matrix(total_piece, batch, p), type);
        if (wants_w) product(grad_w, transposed(total), x);
        if (wants_x) product(grad_x, total, w);
        if (wants_bias)
            cuda::column_sums(workspace.at<float>(total_piece), batch, p, dtype_of(x, "x"),
                              mutable_data_of(grad_bias), workspace.at<float>(sums_piece), stream);
    }
    return {grad_x, grad_w, grad_s, grad_theta, grad_bias};
}

}  // namespace deepl0::torch_ops::on_cuda
