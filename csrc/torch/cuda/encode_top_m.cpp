// The M-sparse encoder: W x + b by torch's product, then a gather stage each (cuda/encode.h), or a
// product with the dense code where flops are cheaper. Its backward by products on supports and
// unit lists (cuda/unit_lists.h), or dense products.
#include "cuda/decode.h"
#include "cuda/encode.h"
#include "cuda/entries.h"
#include "cuda/thresholds.h"
#include "cuda/top_m.h"
#include "cuda/unit_lists.h"
#include "torch/cuda/encode.h"
#include "torch/cuda/ops.h"
#include "torch/cuda/rules.h"
#include "torch/cuda/screen.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

constexpr auto kF32 = cuda::DType::f32;

/// A code [rows, m] in float32.
struct Code {
    float* values;
    int64_t* indices;

    Code from(int64_t row, int64_t m) const {
        return {values ? values + row * m : nullptr, indices ? indices + row * m : nullptr};
    }
};

struct Encoded {
    Tensor values, indices;
    std::optional<Tensor> saved_values = {}, saved_indices = {};
};

/// Bytes: x, W and 4 B p for W x + b, written once and read by every stage; then 4 B m p of S' from
/// L2 a stage, or a product with the dense code.
Encoded encode(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s,
               const std::optional<Tensor>& bias, int64_t m, int64_t stages, bool positive,
               bool save) {
    check_operands("encode_top_m", x, w, s, bias, stages);
    const int64_t batch = x.size(0), p = w.size(0);
    check_m(m, p);
    STD_TORCH_CHECK(p <= cuda::kMostEntries, "rows of more than ", cuda::kMostEntries,
                    " entries are not supported, got ", p);
    Call call(x);
    const cudaStream_t stream = call.stream();
    const bool half = x.scalar_type() != ScalarType::Float, gather = gathers_pay(p, m);
    const int64_t most = std::max<int64_t>(1, most_elements() / std::max<int64_t>(1, p));
    const int64_t block = std::min(batch, most);
    const bool fits = p <= cuda::gather_top_m_most();

    Encoded out{
        empty(x, {batch, m}, ScalarType::Float), empty(x, {batch, m}, ScalarType::Long), {}, {}};
    if (save) {
        out.saved_values = empty(x, {stages - 1, batch, m}, ScalarType::Float);
        out.saved_indices = empty(x, {stages - 1, batch, m}, ScalarType::Long);
    }
    if (stages == 1 && screens(x, w, m)) {
        screen(x, w, bias, m, positive, out.values, out.indices, stream);
        return out;
    }
    Workspace workspace;
    const Piece wx_piece = workspace.floats(block * p);
    // Of what is not saved, one stage's code is read while the next one's is written.
    Piece between_values[2], between_indices[2];
    for (int i = 0; i < (save ? 0 : std::min<int>(2, int(stages) - 1)); ++i) {
        between_values[i] = workspace.floats(batch * m);
        between_indices[i] = workspace.longs(batch * m);
    }
    Piece u_piece, z_piece;
    if (stages > 1 && gather && !fits) u_piece = workspace.floats(block * p);
    if (stages > 1 && !gather) z_piece = workspace.floats(block * p);
    if (stages > 2 && !gather) u_piece = workspace.floats(block * p);
    const Piece selection = workspace.bytes(selection_bytes(batch, block, p, m));
    FirstProduct first(x, w, bias, block, workspace);
    std::optional<Atoms> atoms;
    if (stages > 1 && gather) atoms.emplace(stage_matrix(*s, 0), workspace);
    workspace.allocate(x);

    const auto code_of = [&](int64_t k) -> Code {
        if (k + 1 == stages)
            return {mutable_data_of<float>(out.values), mutable_data_of<int64_t>(out.indices)};
        if (save) {
            auto* values = mutable_data_of<float>(*out.saved_values);
            auto* indices = mutable_data_of<int64_t>(*out.saved_indices);
            return Code{values, indices}.from(k * batch, m);
        }
        return {workspace.at<float>(between_values[k % 2]),
                workspace.at<int64_t>(between_indices[k % 2])};
    };
    std::vector<Code> codes;
    for (int64_t k = 0; k < stages; ++k) codes.push_back(code_of(k));
    auto* wx_data = workspace.at<float>(wx_piece);
    auto* u_data = workspace.at<float>(u_piece);
    auto* z_data = workspace.at<float>(z_piece);
    void* selection_data = workspace.at<void>(selection);

    for (int64_t row = 0; row < batch; row += block) {
        const int64_t rows = std::min(block, batch - row);
        const auto select = [&](const float* u, int64_t k) {
            const Code to = codes[size_t(k)].from(row, m);
            cuda::top_m(kF32, u, p, rows, p, m, positive, to.values, to.indices, selection_data,
                        stream);
            if (half && k + 1 < stages)  // the last ones' values become those of `out`
                cuda::round_entries(dtype_of(x, "x"), to.values, rows * m, stream);
        };
        Tensor wx = workspace.matrix(wx_piece, rows, p);
        first.run(wx, rows_of(x, row, rows), workspace, stream);
        select(wx_data, 0);
        for (int64_t k = 1; k < stages; ++k) {
            const Code from = codes[k - 1].from(row, m), to = codes[k].from(row, m);
            if (gather) {
                if (k == 1 || s->dim() == 3)
                    atoms->make(stage_matrix(*s, k - 1), workspace, stream);
                const cuda::DType dtype = dtype_of(*s, "S");
                if (fits) {
                    cuda::gather_top_m({wx_data, p, from.values, from.indices, dtype, atoms->data,
                                        atoms->stride, rows, p, m, positive, to.values, to.indices},
                                       stream);
                    continue;
                }
                // A row does not fit on the chip: through memory, with the same sums.
                cuda::gather_rows(from.values, from.indices, rows, m, dtype, atoms->data,
                                  atoms->stride, p, p, wx_data, p, kF32, u_data, stream);
                select(u_data, k);
                continue;
            }
            cuda::unpool(4, from.values, from.indices, rows, m, p, z_data, stream);
            const bool last = k + 1 == stages;
            Tensor u = workspace.matrix(last ? wx_piece : u_piece, rows, p);
            add_product(u, wx, workspace.matrix(z_piece, rows, p),
                        transposed(cast(stage_matrix(*s, k - 1), ScalarType::Float)));
            select(last ? wx_data : u_data, k);
        }
    }
    if (half) out.values = cast(out.values, x.scalar_type());
    return out;
}

/// The gradient of S, in its layout, by one way of three: dense products, sorted supports, atomic
/// additions.
class GradientOfSteps {
  public:
    GradientOfSteps(const Tensor& s, int64_t batch, int64_t m, Workspace& workspace)
        : s_(s), batch_(batch), m_(m), p_(s.size(s.dim() - 1)), transposed_(by_columns(s)) {
        dense_ = !sorting_pays(p_, m, 2.0 * double(batch) * double(p_) * double(p_));
        const int64_t matrices = s.dim() == 3 ? s.size(0) : 1;
        // In memory the gradient is [.., p, p] and contiguous: that of S', where S lies so.
        sums_ = gradient_of_matrix(s, ScalarType::Float);
        touched_.resize(size_t(matrices));
        if (dense_) {
            left_ = workspace.floats(batch * p_);
            right_ = workspace.floats(batch * p_);
        } else if (!atomics_allowed()) {
            start_ = workspace.bytes(4 * (p_ + 1));
            unit_ = workspace.bytes(4 * batch * m);
            entry_ = workspace.bytes(4 * batch * m);
            sort_ = workspace.bytes(int64_t(cuda::group_workspace_bytes(batch * m)));
        }
    }

    /// Adds sum_b du_b z_b' of the step from stage k; in the transposed layout the two change
    /// places.
    void add(int64_t k, const int64_t* upper, const float* du, const int64_t* lower, const float* z,
             const Workspace& workspace, cudaStream_t stream) {
        const int64_t at = s_.dim() == 3 ? k : 0;
        const int64_t* rows = transposed_ ? lower : upper;
        const int64_t* columns = transposed_ ? upper : lower;
        const float* row_values = transposed_ ? z : du;
        const float* column_values = transposed_ ? du : z;
        const bool more = touched_[size_t(at)];
        touched_[size_t(at)] = true;
        if (dense_) {
            cuda::unpool(4, row_values, rows, batch_, m_, p_, workspace.at<float>(left_), stream);
            cuda::unpool(4, column_values, columns, batch_, m_, p_, workspace.at<float>(right_),
                         stream);
            Tensor out = memory(at);
            const Tensor left = transposed(workspace.matrix(left_, batch_, p_));
            const Tensor right = workspace.matrix(right_, batch_, p_);
            more ? add_product(out, out, left, right) : product(out, left, right);
            return;
        }
        float* out = mutable_data_of<float>(*sums_);
        if (out) out += at * p_ * p_;
        if (atomics_allowed()) {
            cuda::outer_atomic(rows, row_values, batch_, m_, p_, columns, column_values, p_, more,
                               out, stream);
            return;
        }
        const cuda::UnitLists lists{workspace.at<int32_t>(start_), workspace.at<int32_t>(unit_),
                                    workspace.at<int32_t>(entry_)};
        cuda::group(rows, batch_ * m_, p_, lists, workspace.at<void>(sort_), stream);
        cuda::outer(lists, row_values, m_, p_, columns, column_values, p_, more, out, stream);
    }

    Tensor result(ScalarType type, cudaStream_t stream) {
        for (size_t at = 0; at < touched_.size(); ++at) {
            if (touched_[at]) continue;
            float* out = mutable_data_of<float>(*sums_);
            if (out) out += int64_t(at) * p_ * p_;
            cuda::check(cudaMemsetAsync(out, 0, size_t(p_ * p_) * 4, stream), "cudaMemsetAsync");
        }
        return cast(*sums_, type);
    }

  private:
    /// Of one step, as it lies in memory.
    Tensor memory(int64_t at) const { return view(*sums_, p_, p_, p_, 1, at * p_ * p_); }

    const Tensor& s_;
    int64_t batch_, m_, p_;
    bool transposed_, dense_;
    std::optional<Tensor> sums_;
    std::vector<char> touched_;
    Piece left_, right_, start_, unit_, entry_, sort_;
};

}  // namespace

std::tuple<Tensor, Tensor> encode_top_m(Tensor x, Tensor w, std::optional<Tensor> s,
                                        std::optional<Tensor> bias, int64_t m, int64_t stages,
                                        bool positive) {
    Encoded out = encode(x, w, s, bias, m, stages, positive, false);
    return {out.values, out.indices};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_saving(Tensor x, Tensor w,
                                                               std::optional<Tensor> s,
                                                               std::optional<Tensor> bias,
                                                               int64_t m, int64_t stages,
                                                               bool positive) {
    Encoded out = encode(x, w, s, bias, m, stages, positive, true);
    return {out.values, out.indices, *out.saved_values, *out.saved_indices};
}

/// With g the gradient of the last values: du_K = g on the last support; dS += du_{k+1} z_k' and
/// du_k = S' du_{k+1} on the support of z_k; dW = sum du x', db = sum du and dx = du W with du of
/// all stages. Of nonnegative codes, which come with `values`, what is 0 is not in the support.
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_backward(
    Tensor grad_values, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
    Tensor saved_indices, Tensor x, Tensor w, std::optional<Tensor> s, int64_t mask) {
    const char* op = "encode_top_m_backward";
    STD_TORCH_CHECK(saved_values.dim() == 3 && grad_values.dim() == 2, op,
                    ": expected saved_values [K - 1, B, m], grad_values [B, m]");
    const int64_t steps = saved_values.size(0), stages = steps + 1;
    check_operands(op, x, w, s, std::nullopt, stages);
    const int64_t batch = x.size(0), n = x.size(1), p = w.size(0), m = grad_values.size(1);
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(grad_values.size(0) == batch && grad_values.scalar_type() == type &&
                        shape_of(indices) == shape_of(grad_values) && m <= p &&
                        shape_of(saved_values) == std::vector<int64_t>({steps, batch, m}) &&
                        shape_of(saved_indices) == shape_of(saved_values),
                    op, ": codes do not fit");
    Call call(x);
    const cudaStream_t stream = call.stream();
    same_device(x, grad_values, "grad_values");
    indices = like(x, indices, ScalarType::Long, "indices");
    saved_values = like(x, saved_values, ScalarType::Float, "saved_values");
    saved_indices = like(x, saved_indices, ScalarType::Long, "saved_indices");
    if (values) {
        STD_TORCH_CHECK(shape_of(*values) == shape_of(grad_values), op, ": values do not fit");
        values = like(x, *values, type, "values");
    }
    const bool wants_x = wants(mask, 0), wants_w = wants(mask, 1), wants_s = s && wants(mask, 2),
               wants_bias = wants(mask, 3);
    const bool wants_first = wants_x || wants_w || wants_bias;
    const bool gather = gathers_pay(p, m);
    // Of dS alone the first stage's du is for nothing.
    const int64_t lowest = wants_first ? 0 : wants_s ? 1 : steps;
    const bool sorts = sorting_pays(p, m * stages, 2.0 * double(batch) * double(p) * double(n));
    const int64_t entries = batch * m, all = stages * entries;

    if (mask == 0) {
        const auto none = [&] { return empty(x, {0}, type); };
        return {none(), none(), none(), none()};
    }
    Workspace workspace;
    const Piece du_piece = workspace.floats(all);  // of all stages, the first one first
    std::optional<GradientOfSteps> grad_steps;
    if (wants_s) grad_steps.emplace(*s, batch, m, workspace);
    Piece dense_piece, below_piece;
    if (!gather && steps > lowest) {
        dense_piece = workspace.floats(batch * p);
        below_piece = workspace.floats(batch * p);
    }
    const bool sums = (wants_w || wants_bias) && !sorts;
    const bool lists = (wants_w || wants_bias) && sorts;
    Piece total_piece, sums_piece, index_piece, start, unit, entry, sort, combined, ones_piece;
    if (sums) {
        total_piece = workspace.floats(batch * p);
        if (wants_bias) sums_piece = workspace.floats(cuda::column_sums_workspace(batch, p));
    }
    if (lists) {
        if (steps > 0) index_piece = workspace.longs(all);
        start = workspace.bytes(4 * (p + 1));
        unit = workspace.bytes(4 * all);
        entry = workspace.bytes(4 * all);
        sort = workspace.bytes(int64_t(cuda::group_workspace_bytes(all)));
        const int64_t columns = std::max<int64_t>(wants_w ? n : 0, wants_bias ? 1 : 0);
        combined = workspace.bytes(int64_t(cuda::combine_workspace_bytes(all, columns)));
        if (wants_bias) ones_piece = workspace.floats(1);
    }
    const Piece grad_x_piece = wants_x && steps > 0 ? workspace.floats(batch * n) : Piece{};
    workspace.allocate(x);

    float* du = workspace.at<float>(du_piece);
    const auto du_of = [&](int64_t k) { return du ? du + k * entries : nullptr; };
    const auto* saved = data_of<int64_t>(saved_indices);
    const auto* codes = data_of<float>(saved_values);
    const auto* last_index = data_of<int64_t>(indices);
    const auto index_of = [&](int64_t k) {
        return k == steps ? last_index : saved ? saved + k * entries : nullptr;
    };
    const auto code_of = [&](int64_t k) { return codes ? codes + k * entries : nullptr; };

    cuda::copy_entries(dtype_of(x, "x"), data_of(grad_values), grad_values.stride(0),
                       grad_values.stride(1), values ? data_of(*values) : nullptr, batch, m,
                       du_of(steps), stream);
    for (int64_t k = steps; k > 0; --k) {
        const Tensor step = stage_matrix(*s, k - 1);
        if (grad_steps)
            grad_steps->add(k - 1, index_of(k), du_of(k), index_of(k - 1), code_of(k - 1),
                            workspace, stream);
        if (k == lowest) break;
        float* below = du_of(k - 1);
        if (gather) {
            cuda::product_on_support(index_of(k), du_of(k), index_of(k - 1), batch, m,
                                     dtype_of(step, "S"), data_of(step), step.stride(0),
                                     step.stride(1), p, below, stream);
        } else {
            cuda::unpool(4, du_of(k), index_of(k), batch, m, p, workspace.at<float>(dense_piece),
                         stream);
            Tensor dense = workspace.matrix(below_piece, batch, p);
            product(dense, workspace.matrix(dense_piece, batch, p), cast(step, ScalarType::Float));
            cuda::entries_at(workspace.at<float>(below_piece), index_of(k - 1),
                             values ? code_of(k - 1) : nullptr, batch, m, p, below, stream);
        }
        if (values && gather)
            cuda::copy_entries(kF32, below, m, 1, code_of(k - 1), batch, m, below, stream);
    }

    const bool half = type != ScalarType::Float;
    Tensor grad_x = empty_if(wants_x, x, {batch, n}), grad_w = empty_if(wants_w, x, {p, n}),
           grad_bias = empty_if(wants_bias, x, {p});
    if (lists) {
        const int64_t* index = index_of(0);
        if (steps > 0) {
            auto* stacked = workspace.at<int64_t>(index_piece);
            const auto copy = [&](int64_t* to, const int64_t* from, int64_t count) {
                cuda::check(
                    cudaMemcpyAsync(to, from, size_t(8 * count), cudaMemcpyDeviceToDevice, stream),
                    "cudaMemcpyAsync");
            };
            copy(stacked, saved, steps * entries);
            copy(stacked ? stacked + steps * entries : nullptr, last_index, entries);
            index = stacked;
        }
        const cuda::UnitLists by_unit{workspace.at<int32_t>(start), workspace.at<int32_t>(unit),
                                      workspace.at<int32_t>(entry)};
        cuda::group(index, all, p, by_unit, workspace.at<void>(sort), stream);
        if (wants_w) {
            const Rows rows(x, "x");
            cuda::combine(by_unit, du, all, batch, m, p, dtype_of(x, "x"), data_of(rows.tensor),
                          rows.stride, n, false, mutable_data_of(grad_w),
                          workspace.at<void>(combined), stream);
        }
        if (wants_bias) {
            // Of one row of a single 1, which is that of every signal.
            auto* one = workspace.at<float>(ones_piece);
            cuda::append_column(kF32, nullptr, 0, 1, 0, nullptr, 1, one, stream);
            Tensor wide = half ? empty(x, {p}, ScalarType::Float) : grad_bias;
            cuda::combine(by_unit, du, all, batch, m, p, kF32, one, 0, 1, false,
                          mutable_data_of(wide), workspace.at<void>(combined), stream);
            grad_bias = cast(wide, type);
        }
    }
    if (sums) {
        auto* total = workspace.at<float>(total_piece);
        cuda::unpool(4, du, index_of(0), batch, m, p, total, stream);
        for (int64_t k = 1; k < stages; ++k)
            cuda::add_entries(du_of(k), index_of(k), batch, m, p, total, stream);
        if (wants_w) {
            Tensor wide = half ? empty(x, {p, n}, ScalarType::Float) : grad_w;
            product(wide, transposed(workspace.matrix(total_piece, batch, p)),
                    cast(x, ScalarType::Float));
            grad_w = cast(wide, type);
        }
        if (wants_bias)
            cuda::column_sums(total, batch, p, dtype_of(x, "x"), mutable_data_of(grad_bias),
                              workspace.at<float>(sums_piece), stream);
    }
    if (wants_x) {
        const Rows atoms(w, "W");
        const void* from = data_of(atoms.tensor);
        const cuda::DType dtype = dtype_of(w, "W");
        auto* sum = workspace.at<float>(grad_x_piece);
        for (int64_t k = 0; k < stages; ++k) {
            const bool last = k == steps;
            cuda::gather_rows(du_of(k), index_of(k), batch, m, dtype, from, atoms.stride, p, n,
                              k > 0 ? sum : nullptr, n, last ? dtype : kF32,
                              last ? mutable_data_of(grad_x) : sum, stream);
        }
    }
    return {grad_x, grad_w, grad_steps ? grad_steps->result(type, stream) : empty(x, {0}, type),
            grad_bias};
}

}  // namespace deepl0::torch_ops::on_cuda
