// The factored M-sparse encoder, z <- top_m(z + step W (x - D z) + b), without S and without [p,
// p]. The residual is a gather-sum of atoms, the rest a first stage, to whose product z is added at
// its entries before the selection. Its backward has lists by unit, gather-sums and dots with
// atoms.
#include "cuda/decode.h"
#include "cuda/entries.h"
#include "cuda/factored.h"
#include "cuda/top_m.h"
#include "cuda/transpose.h"
#include "cuda/unit_lists.h"
#include "torch/cuda/encode.h"
#include "torch/cuda/ops.h"
#include "torch/cuda/rules.h"
#include "torch/cuda/screen.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

constexpr auto kF32 = cuda::DType::f32;

void check_factored(const char* op, const Tensor& x, const Tensor& w, const Tensor& d,
                    const std::optional<Tensor>& bias, std::optional<Tensor>& step,
                    const std::vector<int64_t>& m) {
    check_operands(op, x, w, std::nullopt, bias, 1);
    const int64_t p = w.size(0);
    STD_TORCH_CHECK(d.dim() == 2 && d.size(0) == w.size(1) && d.size(1) == p, op,
                    ": D must be [n, p]");
    STD_TORCH_CHECK(d.scalar_type() == x.scalar_type(), op, ": D has not the dtype of x");
    same_device(x, d, "D");
    STD_TORCH_CHECK(!m.empty(), op, ": m must have an entry a stage");
    for (const int64_t entries : m) check_m(entries, p);
    STD_TORCH_CHECK(p <= cuda::kMostEntries, "rows of more than ", cuda::kMostEntries,
                    " entries are not supported, got ", p);
    if (!step) return;
    step = like(x, *step, ScalarType::Float, "step");
    STD_TORCH_CHECK(shape_of(*step) == std::vector<int64_t>({int64_t(m.size())}), op,
                    ": step must be [num_stages]");
}

/// A pointer `count` elements on, of nothing nothing.
template <class T>
T* after(T* data, int64_t count) {
    return data ? data + count : nullptr;
}

/// Entries of the codes of all stages but the last, and where those of each begin.
std::vector<int64_t> starts_of(const std::vector<int64_t>& m, int64_t batch) {
    std::vector<int64_t> starts{0};
    for (size_t k = 0; k + 1 < m.size(); ++k) starts.push_back(starts.back() + batch * m[k]);
    return starts;
}

struct Encoded {
    Tensor values, indices, saved_values, saved_indices;
};

/// Bytes a stage: x or the residual, W and 4 B p of the product, written, read and written at m
/// entries, read again, or what cuda/screen.h says; m n elements of D' a row from L2.
Encoded encode(const Tensor& x, const Tensor& w, const Tensor& d, const std::optional<Tensor>& bias,
               std::optional<Tensor> step, const std::vector<int64_t>& m, bool positive,
               bool save) {
    check_factored("encode_top_m_factored", x, w, d, bias, step, m);
    const int64_t batch = x.size(0), n = x.size(1), p = w.size(0), last = int64_t(m.size()) - 1;
    Call call(x);
    const cudaStream_t stream = call.stream();
    const ScalarType wide = ScalarType::Float;
    const int64_t block =
        std::min(batch, std::max<int64_t>(1, most_elements() / std::max<int64_t>(1, p)));
    const std::vector<int64_t> starts = starts_of(m, batch);
    const int64_t most = *std::max_element(m.begin(), m.end());
    const int64_t before = save ? starts.back() : 0;
    Encoded out{empty(x, {batch, m.back()}, wide), empty(x, {batch, m.back()}, ScalarType::Long),
                empty(x, {before}, wide), empty(x, {before}, ScalarType::Long)};

    // Half types multiply as they are where nothing was subtracted and nothing scaled.
    const bool scales = step.has_value();
    const bool screened = std::all_of(m.begin(), m.end(), [&](int64_t entries) {
        return screens(x, w, entries) && (last == 0 || p <= cuda::kMostUnitsOfZ);
    });
    std::optional<FirstProduct> first;
    std::optional<Tensor> wide_w, wide_bias;
    Workspace workspace;
    std::optional<Screen> screen;
    Piece u_piece;
    if (screened)
        screen.emplace(w, bias, block, workspace);
    else
        u_piece = workspace.floats(block * p);
    if (!screened && !scales) first.emplace(x, w, bias, block, workspace);
    Piece residual_piece, between_values[2], between_indices[2];
    std::optional<Atoms> atoms;
    if (scales || last > 0) {
        residual_piece = workspace.floats(block * n);
        wide_w = cast(w, wide);
        if (bias) wide_bias = cast(*bias, wide);
    }
    if (last > 0) atoms.emplace(d, workspace);
    // Of what is not saved, one stage's code is read while the next one's is written.
    for (int i = 0; i < (save ? 0 : int(std::min<int64_t>(2, last))); ++i) {
        between_values[i] = workspace.floats(block * most);
        between_indices[i] = workspace.longs(block * most);
    }
    int64_t selects = 0;
    for (const int64_t entries : m)
        selects = std::max(selects, screened ? 0 : selection_bytes(batch, block, p, entries));
    const Piece selection = workspace.bytes(selects);
    workspace.allocate(x);

    const Rows rows_of_x(x, "x");
    const cuda::DType dtype = dtype_of(x, "x");
    auto* u = workspace.at<float>(u_piece);
    auto* r = workspace.at<float>(residual_piece);
    auto* selected = workspace.at<void>(selection);
    const float* steps = step ? data_of<float>(*step) : nullptr;
    const auto* x_data = static_cast<const char*>(data_of(rows_of_x.tensor));
    if (atoms && batch > 0) atoms->make(d, workspace, stream);
    struct Code {
        float* values;
        int64_t* indices;
    };
    const auto code_of = [&](int64_t k, int64_t row) -> Code {
        const int64_t at = row * m[size_t(k)];
        if (k == last)
            return {after(mutable_data_of<float>(out.values), at),
                    after(mutable_data_of<int64_t>(out.indices), at)};
        if (save)
            return {after(mutable_data_of<float>(out.saved_values), starts[size_t(k)] + at),
                    after(mutable_data_of<int64_t>(out.saved_indices), starts[size_t(k)] + at)};
        return {workspace.at<float>(between_values[k % 2]),
                workspace.at<int64_t>(between_indices[k % 2])};
    };
    for (int64_t row = 0; row < batch; row += block) {
        const int64_t rows = std::min(block, batch - row);
        Tensor product_of = screened ? x : workspace.matrix(u_piece, rows, p);
        const Tensor residuals =
            r || residual_piece.bytes ? workspace.matrix(residual_piece, rows, n) : product_of;
        const void* from =
            x_data ? x_data + row * rows_of_x.stride * int64_t(x.element_size()) : nullptr;
        for (int64_t k = 0; k <= last; ++k) {
            const Code z = k > 0 ? code_of(k - 1, row) : Code{}, to = code_of(k, row);
            const int64_t entries = k > 0 ? m[size_t(k - 1)] : 0;
            if (k > 0 || scales) {
                if (k > 0)
                    cuda::gather_rows(z.values, z.indices, rows, entries, dtype, atoms->data,
                                      atoms->stride, p, n, nullptr, 0, kF32, r, stream);
                cuda::residual(dtype, from, rows_of_x.stride, rows, n, k > 0 ? r : nullptr,
                               after(steps, k), r, stream);
            }
            if (screened) {
                cuda::ScreenedTopM stage{};
                stage.x = k > 0 || scales ? r : static_cast<const float*>(from);
                stage.x_stride = k > 0 || scales ? n : rows_of_x.stride;
                stage.rows = rows;
                stage.m = m[size_t(k)];
                stage.positive = positive;
                stage.values = to.values;
                stage.indices = to.indices;
                stage.z_values = z.values;
                stage.z_indices = z.indices;
                stage.z_m = entries;
                screen->run(stage, workspace, stream);
                continue;
            }
            if (k == 0 && first)
                first->run(product_of, rows_of(x, row, rows), workspace, stream);
            else
                wide_bias ? add_product(product_of, *wide_bias, residuals, transposed(*wide_w))
                          : product(product_of, residuals, transposed(*wide_w));
            // The indices of a row are distinct: no two entries meet.
            if (k > 0) cuda::add_entries(z.values, z.indices, rows, entries, p, u, stream);
            cuda::top_m(kF32, u, p, rows, p, m[size_t(k)], positive, to.values, to.indices,
                        selected, stream);
            if (dtype != kF32 && k < last)  // the last ones' values become those of `out`
                cuda::round_entries(dtype, to.values, rows * m[size_t(k)], stream);
        }
    }
    out.values = cast(out.values, x.scalar_type());
    return out;
}

/// Sums over the lists of units, [p, columns] float32, one stage's after another's.
class UnitSums {
  public:
    UnitSums(int64_t p, int64_t entries, int64_t columns, Workspace& workspace)
        : p_(p),
          start_(workspace.bytes(4 * (p + 1))),
          unit_(workspace.bytes(4 * entries)),
          entry_(workspace.bytes(4 * entries)),
          sort_(workspace.bytes(int64_t(cuda::group_workspace_bytes(entries)))),
          combined_(workspace.bytes(int64_t(cuda::combine_workspace_bytes(entries, columns)))) {}

    /// The lists of the codes [batch, m] of a stage, sorted unless they are the last ones.
    void group(int64_t stage, const int64_t* indices, int64_t batch, int64_t m,
               const Workspace& workspace, cudaStream_t stream) {
        batch_ = batch;
        m_ = m;
        if (stage == stage_) return;
        stage_ = stage;
        cuda::group(indices, batch * m, p_, lists(workspace), workspace.at<void>(sort_), stream);
    }

    /// out (+)= sum of c x' over the lists; x [batch, n].
    void add(const float* c, cuda::DType dtype, const void* x, int64_t stride, int64_t n, bool more,
             float* out, const Workspace& workspace, cudaStream_t stream) const {
        cuda::combine(lists(workspace), c, batch_ * m_, batch_, m_, p_, dtype, x, stride, n, more,
                      out, workspace.at<void>(combined_), stream);
    }

  private:
    cuda::UnitLists lists(const Workspace& workspace) const {
        return {workspace.at<int32_t>(start_), workspace.at<int32_t>(unit_),
                workspace.at<int32_t>(entry_)};
    }

    int64_t p_, stage_ = -1, batch_ = 0, m_ = 0;
    Piece start_, unit_, entry_, sort_, combined_;
};

}  // namespace

std::tuple<Tensor, Tensor> encode_top_m_factored(Tensor x, Tensor w, Tensor d,
                                                 std::optional<Tensor> bias,
                                                 std::optional<Tensor> step, std::vector<int64_t> m,
                                                 bool positive) {
    Encoded out = encode(x, w, d, bias, step, m, positive, false);
    return {out.values, out.indices};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_factored_saving(
    Tensor x, Tensor w, Tensor d, std::optional<Tensor> bias, std::optional<Tensor> step,
    std::vector<int64_t> m, bool positive) {
    Encoded out = encode(x, w, d, bias, step, m, positive, true);
    return {out.values, out.indices, out.saved_values, out.saved_indices};
}

/// With du_k on the support of stage k, r_k its residual and q_k = W' du_k: dr_k = step_k q_k, dx =
/// sum dr_k, dW = sum step_k du_k r_k', db = sum du_k, dstep_k = <q_k, r_k>, dD = -sum dr_k
/// z_{k-1}', du_{k-1} = du_k - D' dr_k on the support of z_{k-1}. Of nonnegative codes, which come
/// with `values`, what is 0 is not in the support. Flops O(K B m n), memory beyond the gradients
/// O(B (n + K m)).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> encode_top_m_factored_backward(
    Tensor grad_values, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
    Tensor saved_indices, Tensor x, Tensor w, Tensor d, std::optional<Tensor> step,
    std::vector<int64_t> m, int64_t mask) {
    const char* op = "encode_top_m_factored_backward";
    check_factored(op, x, w, d, std::nullopt, step, m);
    const int64_t batch = x.size(0), n = x.size(1), p = w.size(0), last = int64_t(m.size()) - 1;
    const ScalarType type = x.scalar_type(), wide = ScalarType::Float;
    const std::vector<int64_t> starts = starts_of(m, batch);
    STD_TORCH_CHECK(
        shape_of(grad_values) == std::vector<int64_t>({batch, m.back()}) &&
            grad_values.scalar_type() == type && shape_of(indices) == shape_of(grad_values) &&
            saved_values.numel() == starts.back() && saved_indices.numel() == starts.back(),
        op, ": codes do not fit");
    Call call(x);
    const cudaStream_t stream = call.stream();
    same_device(x, grad_values, "grad_values");
    indices = like(x, indices, ScalarType::Long, "indices");
    saved_values = like(x, saved_values, wide, "saved_values");
    saved_indices = like(x, saved_indices, ScalarType::Long, "saved_indices");
    if (values) {
        STD_TORCH_CHECK(shape_of(*values) == shape_of(grad_values), op, ": values do not fit");
        values = like(x, *values, type, "values");
    }
    const bool wants_x = wants(mask, 0), wants_w = wants(mask, 1), wants_d = wants(mask, 2),
               wants_bias = wants(mask, 3), wants_step = wants(mask, 4);
    // The first stage whose du is for something.
    const int64_t lowest = mask & ~int64_t(4) ? 0 : 1;
    const int64_t most = *std::max_element(m.begin(), m.end());
    const bool columns = by_columns(d), half = type != wide;
    Tensor grad_x =
               empty(x, wants_x ? std::vector<int64_t>{batch, n} : std::vector<int64_t>{0}, wide),
           grad_w = empty(x, wants_w ? std::vector<int64_t>{p, n} : std::vector<int64_t>{0}, wide),
           grad_d = wants_d ? gradient_of_matrix(d, wide) : empty(x, {0}, wide),
           grad_bias = empty(x, {wants_bias ? p : 0}, wide),
           grad_step = empty(x, {wants_step ? last + 1 : 0}, wide);
    const auto results = [&]() -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> {
        return {cast(grad_x, type), cast(grad_w, type), cast(grad_d, type), cast(grad_bias, type),
                grad_step};
    };
    if (mask == 0) return results();

    Workspace workspace;
    const Piece du_pieces[2]{workspace.floats(batch * most), workspace.floats(batch * most)};
    Piece scaled_piece, residual_piece, q_piece, one_piece, dot_piece, atoms_piece;
    const bool subtracts = last > 0, reads_residual = wants_w || wants_step;
    if (wants_w && step) scaled_piece = workspace.floats(batch * most);
    if (reads_residual) residual_piece = workspace.floats(batch * n);
    if (wants_bias) one_piece = workspace.floats(1);
    if (wants_step) dot_piece = workspace.bytes(cuda::kDotBytes);
    if (wants_d && !columns) atoms_piece = workspace.floats(p * n);
    if (wants_x || wants_step || subtracts) q_piece = workspace.floats(batch * n);
    std::optional<UnitSums> sums;
    if (wants_w || wants_bias || wants_d)
        sums.emplace(p, batch * most, wants_w || wants_d ? n : 1, workspace);
    // Its dots are with float32.
    const Tensor wide_d = subtracts ? cast(d, wide) : d;
    std::optional<Atoms> atoms;
    if (subtracts) atoms.emplace(wide_d, workspace);
    workspace.allocate(x);

    const Rows rows_of_x(x, "x"), rows_of_w(w, "W");
    const cuda::DType dtype = dtype_of(x, "x");
    auto* q = workspace.at<float>(q_piece);
    auto* r = workspace.at<float>(residual_piece);
    auto* one = workspace.at<float>(one_piece);
    auto* scaled = workspace.at<float>(scaled_piece);
    float* sum_of_d =
        wants_d && columns ? mutable_data_of<float>(grad_d) : workspace.at<float>(atoms_piece);
    const float* steps = step ? data_of<float>(*step) : nullptr;
    const auto index_of = [&](int64_t k) {
        return k == last ? data_of<int64_t>(indices)
                         : after(data_of<int64_t>(saved_indices), starts[size_t(k)]);
    };
    const auto code_of = [&](int64_t k) {
        return after(data_of<float>(saved_values), starts[size_t(k)]);
    };
    if (atoms) atoms->make(wide_d, workspace, stream);
    if (wants_bias) cuda::append_column(kF32, nullptr, 0, 1, 0, nullptr, 1, one, stream);

    auto* du = workspace.at<float>(du_pieces[last % 2]);
    cuda::copy_entries(dtype, data_of(grad_values), grad_values.stride(0), grad_values.stride(1),
                       values ? data_of(*values) : nullptr, batch, m.back(), du, stream);
    bool more_d = false;
    for (int64_t k = last; k >= lowest; --k) {
        const bool more = k < last;
        const int64_t entries = m[size_t(k)], below = k > 0 ? m[size_t(k - 1)] : 0;
        if (wants_w || wants_bias) sums->group(k, index_of(k), batch, entries, workspace, stream);
        const void* left = data_of(rows_of_x.tensor);
        int64_t stride = rows_of_x.stride;
        if (reads_residual && (k > 0 || half || wants_step)) {
            if (k > 0)
                cuda::gather_rows(code_of(k - 1), index_of(k - 1), batch, below, kF32, atoms->data,
                                  atoms->stride, p, n, nullptr, 0, kF32, r, stream);
            cuda::residual(dtype, left, stride, batch, n, k > 0 ? r : nullptr, nullptr, r, stream);
            left = r;
            stride = n;
        }
        if (wants_w) {
            if (step)
                cuda::residual(kF32, du, entries, batch, entries, nullptr, steps + k, scaled,
                               stream);
            sums->add(step ? scaled : du, kF32, left, stride, n, more,
                      mutable_data_of<float>(grad_w), workspace, stream);
        }
        if (wants_bias)
            sums->add(du, kF32, one, 0, 1, more, mutable_data_of<float>(grad_bias), workspace,
                      stream);
        if (k == 0 && !wants_x && !wants_step) break;
        cuda::gather_rows(du, index_of(k), batch, entries, dtype, data_of(rows_of_w.tensor),
                          rows_of_w.stride, p, n, nullptr, 0, kF32, q, stream);
        if (wants_step)
            cuda::dot(q, r, batch * n, after(mutable_data_of<float>(grad_step), k),
                      workspace.at<void>(dot_piece), stream);
        if (k == 0 && !wants_x) break;
        cuda::back_to_residual(q, batch * n, after(steps, k),
                               wants_x ? mutable_data_of<float>(grad_x) : nullptr, more, stream);
        if (k == 0) break;
        if (wants_d) {
            sums->group(k - 1, index_of(k - 1), batch, below, workspace, stream);
            sums->add(code_of(k - 1), kF32, q, n, n, more_d, sum_of_d, workspace, stream);
            more_d = true;
        }
        if (k == lowest) break;
        auto* down = workspace.at<float>(du_pieces[(k - 1) % 2]);
        cuda::row_dots(index_of(k - 1), batch, below, kF32, atoms->data, atoms->stride, p, q, n, n,
                       down, stream);
        cuda::add_common_entries(du, index_of(k), entries, index_of(k - 1),
                                 values ? code_of(k - 1) : nullptr, batch, below, down, stream);
        du = down;
    }
    if (wants_d && !more_d)
        cuda::check(cudaMemsetAsync(columns ? sum_of_d : mutable_data_of<float>(grad_d), 0,
                                    size_t(n * p) * 4, stream),
                    "cudaMemsetAsync");
    if (wants_d && more_d && !columns)
        cuda::transpose(4, sum_of_d, n, p, n, mutable_data_of(grad_d), stream);
    return results();
}

}  // namespace deepl0::torch_ops::on_cuda
