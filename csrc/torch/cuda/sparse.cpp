// Sums by sparse codes and over their transpose.
#include "cuda/decode.h"
#include "cuda/transpose.h"
#include "cuda/unit_lists.h"
#include "torch/cuda/ops.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

cuda::UnitLists lists_of(const Tensor& start, const Tensor& unit, const Tensor& entry) {
    // The kernels write none of them; `group` has a struct of its own.
    return {const_cast<int32_t*>(data_of<int32_t>(start)),
            const_cast<int32_t*>(data_of<int32_t>(unit)),
            const_cast<int32_t*>(data_of<int32_t>(entry))};
}

int64_t units_of(const Tensor& start) { return start.size(0) - 1; }

}  // namespace

Tensor transpose_copy(Tensor matrix) {
    const size_t element = element_of(matrix, "matrix");
    STD_TORCH_CHECK(matrix.dim() == 2, "transpose: expected a matrix");
    Call call(matrix);
    const Rows rows(matrix, "matrix");
    Tensor out = empty(matrix, {rows.cols, rows.rows}, matrix.scalar_type());
    cuda::transpose(element, data_of(rows.tensor), rows.stride, rows.rows, rows.cols,
                    mutable_data_of(out), call.stream());
    return out;
}

Tensor gather_rows(Tensor values, Tensor indices, Tensor w, bool wide) {
    const cuda::DType dtype = dtype_of(w, "w");
    STD_TORCH_CHECK(values.dim() == 2 && w.dim() == 2 && shape_of(values) == shape_of(indices),
                    "gather_rows: expected values and indices [B, m], w [units, n]");
    Call call(values);
    values = like(values, values, ScalarType::Float, "values");
    indices = like(values, indices, ScalarType::Long, "indices");
    same_device(values, w, "w");
    const Rows atoms(w, "w");
    const int64_t batch = values.size(0), n = w.size(1);
    Tensor out = empty(w, {batch, n}, wide ? ScalarType::Float : w.scalar_type());
    cuda::gather_rows(data_of<float>(values), data_of<int64_t>(indices), batch, values.size(1),
                      dtype, data_of(atoms.tensor), atoms.stride, w.size(0), n, nullptr, 0,
                      wide ? cuda::DType::f32 : dtype, mutable_data_of(out), call.stream());
    return out;
}

Tensor row_dots(Tensor indices, Tensor w, Tensor x) {
    const cuda::DType dtype = dtype_of(w, "w");
    STD_TORCH_CHECK(indices.dim() == 2 && w.dim() == 2 && x.dim() == 2 &&
                        x.size(0) == indices.size(0) && x.size(1) == w.size(1) &&
                        x.scalar_type() == w.scalar_type(),
                    "row_dots: expected indices [B, m], w [units, n] and x [B, n] of one dtype");
    Call call(x);
    indices = like(x, indices, ScalarType::Long, "indices");
    same_device(x, w, "w");
    const Rows atoms(w, "w"), rows(x, "x");
    Tensor out = empty(x, shape_of(indices), ScalarType::Float);
    cuda::row_dots(data_of<int64_t>(indices), indices.size(0), indices.size(1), dtype,
                   data_of(atoms.tensor), atoms.stride, w.size(0), data_of(rows.tensor),
                   rows.stride, x.size(1), mutable_data_of<float>(out), call.stream());
    return out;
}

std::tuple<Tensor, Tensor, Tensor> group(Tensor indices, int64_t units) {
    STD_TORCH_CHECK(units >= 0 && units < INT32_MAX, "group: units out of range");
    Call call(indices);
    indices = like(indices, indices, ScalarType::Long, "indices");
    const int64_t entries = indices.numel();
    Tensor start = empty(indices, {units + 1}, ScalarType::Int);
    Tensor unit = empty(indices, {entries}, ScalarType::Int);
    Tensor entry = empty(indices, {entries}, ScalarType::Int);
    void* workspace = call.workspace(indices, cuda::group_workspace_bytes(entries));
    cuda::group(data_of<int64_t>(indices), entries, units,
                {mutable_data_of<int32_t>(start), mutable_data_of<int32_t>(unit),
                 mutable_data_of<int32_t>(entry)},
                workspace, call.stream());
    return {start, unit, entry};
}

Tensor combine(Tensor start, Tensor unit, Tensor entry, Tensor c, Tensor x) {
    const cuda::DType dtype = dtype_of(x, "x");
    STD_TORCH_CHECK(c.dim() >= 2 && x.dim() == 2 && x.size(0) == c.size(c.dim() - 2) &&
                        entry.numel() == c.numel(),
                    "combine: expected coefficients [..., B, m] and x [B, n]");
    Call call(x);
    start = like(x, start, ScalarType::Int, "start");
    unit = like(x, unit, ScalarType::Int, "unit");
    entry = like(x, entry, ScalarType::Int, "entry");
    c = like(x, c, ScalarType::Float, "c");
    const Rows rows(x, "x");
    const int64_t n = x.size(1), entries = c.numel();
    Tensor out = empty(x, {units_of(start), n}, x.scalar_type());
    void* workspace = call.workspace(x, cuda::combine_workspace_bytes(entries, n));
    cuda::combine(lists_of(start, unit, entry), data_of<float>(c), entries, x.size(0),
                  last_size(c, "c"), units_of(start), dtype, data_of(rows.tensor), rows.stride, n,
                  /*accumulate=*/false, mutable_data_of(out), workspace, call.stream());
    return out;
}

void outer(Tensor start, Tensor entry, Tensor c, Tensor indices, Tensor values, Tensor out,
           bool accumulate) {
    STD_TORCH_CHECK(c.dim() == 2 && out.dim() == 2 && shape_of(c) == shape_of(values) &&
                        shape_of(c) == shape_of(indices) && entry.numel() == c.numel() &&
                        out.size(0) == units_of(start) && out.is_contiguous() &&
                        out.scalar_type() == ScalarType::Float,
                    "outer: expected c, indices and values [B, m], out [units, columns] float32");
    Call call(out);
    start = like(out, start, ScalarType::Int, "start");
    entry = like(out, entry, ScalarType::Int, "entry");
    c = like(out, c, ScalarType::Float, "c");
    indices = like(out, indices, ScalarType::Long, "indices");
    values = like(out, values, ScalarType::Float, "values");
    cuda::outer(lists_of(start, entry, entry), data_of<float>(c), c.size(1), units_of(start),
                data_of<int64_t>(indices), data_of<float>(values), out.size(1), accumulate,
                mutable_data_of<float>(out), call.stream());
}

void outer_atomic(Tensor rows, Tensor c, Tensor indices, Tensor values, Tensor out,
                  bool accumulate) {
    STD_TORCH_CHECK(c.dim() == 2 && out.dim() == 2 && shape_of(c) == shape_of(values) &&
                        shape_of(c) == shape_of(indices) && shape_of(c) == shape_of(rows) &&
                        out.is_contiguous() && out.scalar_type() == ScalarType::Float,
                    "outer_atomic: expected rows, c, indices and values [B, m], out [units, "
                    "columns] float32");
    Call call(out);
    rows = like(out, rows, ScalarType::Long, "rows");
    c = like(out, c, ScalarType::Float, "c");
    indices = like(out, indices, ScalarType::Long, "indices");
    values = like(out, values, ScalarType::Float, "values");
    cuda::outer_atomic(data_of<int64_t>(rows), data_of<float>(c), c.size(0), c.size(1), out.size(0),
                       data_of<int64_t>(indices), data_of<float>(values), out.size(1), accumulate,
                       mutable_data_of<float>(out), call.stream());
}

Tensor product_on_support(Tensor upper, Tensor c, Tensor lower, Tensor s) {
    const cuda::DType dtype = dtype_of(s, "s");
    STD_TORCH_CHECK(c.dim() == 2 && s.dim() == 2 && s.size(0) == s.size(1) &&
                        shape_of(upper) == shape_of(c) && shape_of(lower) == shape_of(c),
                    "product_on_support: expected upper, c and lower [B, m], s [p, p]");
    Call call(c);
    upper = like(c, upper, ScalarType::Long, "upper");
    lower = like(c, lower, ScalarType::Long, "lower");
    c = like(c, c, ScalarType::Float, "c");
    same_device(c, s, "s");
    Tensor out = empty(c, shape_of(c), ScalarType::Float);
    cuda::product_on_support(data_of<int64_t>(upper), data_of<float>(c), data_of<int64_t>(lower),
                             c.size(0), c.size(1), dtype, data_of(s), s.stride(0), s.stride(1),
                             s.size(0), mutable_data_of<float>(out), call.stream());
    return out;
}

}  // namespace deepl0::torch_ops::on_cuda
