// x_hat = D a as a gather-sum of atoms, and its backward by unit lists (cuda/unit_lists.h) or a
// product. Half types of few units go by dense products both ways.
#include "cuda/decode.h"

#include "cuda/entries.h"
#include "cuda/top_m.h"
#include "cuda/transpose.h"
#include "cuda/unit_lists.h"
#include "torch/cuda/ops.h"
#include "torch/cuda/pass.h"
#include "torch/cuda/rules.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

void check_code(const char* op, const Tensor& values, const Tensor& indices, const Tensor& d) {
    dtype_of(values, "values");
    STD_TORCH_CHECK(values.dim() == 2 && shape_of(indices) == shape_of(values) && d.dim() == 2 &&
                        values.size(1) <= d.size(1),
                    op, ": expected values and indices [B, m], D [n, p], m <= p");
    STD_TORCH_CHECK(d.scalar_type() == values.scalar_type(), op, ": D has not the dtype of values");
    same_device(values, d, "D");
}

}  // namespace

/// m n elements of D' read a row. D' is D itself where that is a transposed view, else a copy, 2 n
/// p elements; for few entries a copy of the atoms in use only. By a product: 2 p elements a row
/// written and read.
Tensor decode(Tensor values, Tensor indices, Tensor d) {
    check_code("decode", values, indices, d);
    Call call(values);
    const cudaStream_t stream = call.stream();
    indices = like(values, indices, ScalarType::Long, "indices");
    const int64_t batch = values.size(0), m = values.size(1), n = d.size(0), p = d.size(1);
    const cuda::DType dtype = dtype_of(values, "values");
    if (dtype != cuda::DType::f32 && half_products_pay(p, m)) {
        Workspace workspace;
        const Piece piece = workspace.bytes(2 * batch * p);
        workspace.allocate(values);
        Tensor out = empty(values, {batch, n}, values.scalar_type());
        const Tensor flat = dense(values);
        cuda::unpool(2, data_of(flat), data_of<int64_t>(indices), batch, m, p,
                     workspace.at<void>(piece), stream);
        product(out, workspace.matrix(piece, batch, p, values.scalar_type()), transposed(d));
        return out;
    }
    const bool in_use = 4 * batch * m < p && !by_columns(d);
    const bool converts = dtype != cuda::DType::f32 || !values.is_contiguous();

    Tensor out = empty(values, {batch, n}, values.scalar_type());
    Workspace workspace;
    Piece values_piece, atoms_piece, order_piece;
    if (converts) values_piece = workspace.floats(batch * m);
    std::optional<Atoms> atoms;
    if (in_use) {
        atoms_piece = workspace.bytes(batch * m * n * int64_t(element_of(d, "D")));
        order_piece = workspace.longs(batch * m);
    } else {
        atoms.emplace(d, workspace);
    }
    workspace.allocate(values);
    const float* factors = nullptr;
    if (converts) {
        auto* to = workspace.at<float>(values_piece);
        cuda::copy_entries(dtype, data_of(values), values.stride(0), values.stride(1), nullptr,
                           batch, m, to, stream);
        factors = to;
    } else {
        factors = data_of<float>(values);
    }
    const auto* at = data_of<int64_t>(indices);
    if (!in_use) {
        atoms->make(d, workspace, stream);
        cuda::gather_rows(factors, at, batch, m, dtype, atoms->data, atoms->stride, p, n, nullptr,
                          0, dtype, mutable_data_of(out), stream);
        return out;
    }
    const Rows rows(d, "D");
    auto* order = workspace.at<int64_t>(order_piece);
    void* used = workspace.at<void>(atoms_piece);
    cuda::gather_columns(element_of(d, "D"), data_of(rows.tensor), rows.stride, n, p, at, batch * m,
                         used, order, stream);
    cuda::gather_rows(factors, order, batch, m, dtype, used, n, batch * m, n, nullptr, 0, dtype,
                      mutable_data_of(out), stream);
    return out;
}

/// grad_values are dot products with atoms, or entries of the product of grad with all of them;
/// grad_D is grad' times the dense code, or the sum of the rows of grad over the list of each
/// atom.
std::tuple<Tensor, Tensor> decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor d,
                                           int64_t mask) {
    check_code("decode_backward", values, indices, d);
    const int64_t batch = values.size(0), m = values.size(1), n = d.size(0), p = d.size(1);
    STD_TORCH_CHECK(shape_of(grad) == std::vector<int64_t>({batch, n}) &&
                        grad.scalar_type() == values.scalar_type(),
                    "decode_backward: grad must be [B, n] and of the dtype of values");
    same_device(values, grad, "grad");
    Call call(values);
    const cudaStream_t stream = call.stream();
    indices = like(values, indices, ScalarType::Long, "indices");
    const auto* at = data_of<int64_t>(indices);
    const cuda::DType dtype = dtype_of(values, "values");
    const size_t element = element_of(values, "values");
    const bool half = dtype != cuda::DType::f32;
    const bool wants_values = wants(mask, 0), wants_d = wants(mask, 1);
    const int64_t entries = batch * m;
    const bool sorts = sorting_pays(p, m, 2.0 * double(batch) * double(p) * double(n), half);
    const bool dots = wants_values && !(half && half_products_pay(p, m));
    const bool columns = by_columns(d);
    Tensor grad_d =
        wants_d ? gradient_of_matrix(d, d.scalar_type()) : empty(d, {0}, d.scalar_type());
    Tensor grad_values = wants_values ? empty(values, {batch, m}, ScalarType::Float)
                                      : empty(values, {0}, values.scalar_type());
    Workspace workspace;
    std::optional<Atoms> atoms;
    if (dots) atoms.emplace(d, workspace);
    Piece product_piece;
    if (wants_values && !dots) product_piece = workspace.floats(batch * p);
    Piece dense_piece, values_piece, start, unit, entry, sort, combined, atoms_piece;
    if (wants_d && !sorts) dense_piece = workspace.bytes(batch * p * int64_t(element));
    const bool converts = half || !values.is_contiguous();
    if (wants_d && sorts) {
        if (converts) values_piece = workspace.floats(entries);
        start = workspace.bytes(4 * (p + 1));
        unit = workspace.bytes(4 * entries);
        entry = workspace.bytes(4 * entries);
        sort = workspace.bytes(int64_t(cuda::group_workspace_bytes(entries)));
        combined = workspace.bytes(int64_t(cuda::combine_workspace_bytes(entries, n)));
        if (!columns) atoms_piece = workspace.bytes(p * n * int64_t(element));
    }
    workspace.allocate(values);
    if (wants_values && !dots) {
        Tensor all = workspace.matrix(product_piece, batch, p);
        product(all, grad, d);
        cuda::entries_at(workspace.at<float>(product_piece), at, nullptr, batch, m, p,
                         mutable_data_of<float>(grad_values), stream);
        grad_values = cast(grad_values, values.scalar_type());
    }
    if (dots) {
        atoms->make(d, workspace, stream);
        const Rows rows(grad, "grad");
        cuda::row_dots(at, batch, m, dtype, atoms->data, atoms->stride, p, data_of(rows.tensor),
                       rows.stride, n, mutable_data_of<float>(grad_values), stream);
        grad_values = cast(grad_values, values.scalar_type());
    }
    if (wants_d && !sorts) {
        const Tensor flat = dense(values);
        cuda::unpool(element, data_of(flat), at, batch, m, p, workspace.at<void>(dense_piece),
                     stream);
        product(grad_d, transposed(grad),
                workspace.matrix(dense_piece, batch, p, values.scalar_type()));
    }
    if (wants_d && sorts) {
        const float* factors = nullptr;
        if (converts) {
            auto* to = workspace.at<float>(values_piece);
            cuda::copy_entries(dtype, data_of(values), values.stride(0), values.stride(1), nullptr,
                               batch, m, to, stream);
            factors = to;
        } else {
            factors = data_of<float>(values);
        }
        const cuda::UnitLists lists{workspace.at<int32_t>(start), workspace.at<int32_t>(unit),
                                    workspace.at<int32_t>(entry)};
        cuda::group(at, entries, p, lists, workspace.at<void>(sort), stream);
        const Rows rows(grad, "grad");
        // In memory the gradient of D' is that of D, where D lies by columns.
        void* sums = columns ? mutable_data_of(grad_d) : workspace.at<void>(atoms_piece);
        cuda::combine(lists, factors, entries, batch, m, p, dtype, data_of(rows.tensor),
                      rows.stride, n, false, sums, workspace.at<void>(combined), stream);
        if (!columns) cuda::transpose(element, sums, n, p, n, mutable_data_of(grad_d), stream);
    }
    return {grad_values, grad_d};
}

}  // namespace deepl0::torch_ops::on_cuda
