#include "cuda/top_m.h"

#include "cuda/decode.h"
#include "cuda/encode.h"
#include "torch/cuda/ops.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

void check_m(int64_t m, int64_t p) {
    torch_ops::check_m(m, p);
    STD_TORCH_CHECK(p <= cuda::kMostEntries, "rows of more than ", cuda::kMostEntries,
                    " entries are not supported, got ", p);
}

}  // namespace

std::tuple<Tensor, Tensor> top_m(Tensor u, int64_t m, bool positive) {
    const cuda::DType dtype = dtype_of(u, "u");
    Call call(u);
    const Rows rows(u, "u");
    check_m(m, rows.cols);
    Tensor values = empty(u, with_last(u, m), u.scalar_type());
    Tensor indices = empty(u, with_last(u, m), ScalarType::Long);
    void* workspace = call.workspace(
        u, cuda::top_m_workspace_bytes(dtype, rows.rows, rows.cols, m, /*keep=*/false));
    cuda::top_m(dtype, data_of(rows.tensor), rows.stride, rows.rows, rows.cols, m, positive,
                mutable_data_of(values), mutable_data_of<int64_t>(indices), workspace,
                call.stream());
    return {values, indices};
}

std::tuple<Tensor, Tensor> keep_top_m(Tensor u, int64_t m, bool positive) {
    const cuda::DType dtype = dtype_of(u, "u");
    Call call(u);
    const Rows rows(u, "u");
    check_m(m, rows.cols);
    Tensor out = empty(u, shape_of(u), u.scalar_type());
    Tensor mask = empty(u, with_last(u, mask_bytes(rows.cols)), ScalarType::Byte);
    void* workspace = call.workspace(
        u, cuda::top_m_workspace_bytes(dtype, rows.rows, rows.cols, m, /*keep=*/true));
    cuda::keep_top_m(dtype, data_of(rows.tensor), rows.stride, rows.rows, rows.cols, m, positive,
                     mutable_data_of(out), mutable_data_of<uint8_t>(mask), workspace,
                     call.stream());
    return {out, mask};
}

Tensor unpool(Tensor values, Tensor indices, int64_t size) {
    const size_t element = element_of(values, "values");
    STD_TORCH_CHECK(shape_of(values) == shape_of(indices), "indices must have the shape of values");
    const int64_t m = last_size(values, "values");
    STD_TORCH_CHECK(size >= m, "size must be >= ", m, ", got ", size);
    Call call(values);
    indices = like(values, indices, ScalarType::Long, "indices");
    values = dense(values);
    Tensor out = empty(values, with_last(values, size), values.scalar_type());
    cuda::unpool(element, data_of(values), data_of<int64_t>(indices), rows_of(values), m, size,
                 mutable_data_of(out), call.stream());
    return out;
}

Tensor apply_mask(Tensor u, Tensor mask) {
    const size_t element = element_of(u, "u");
    Call call(u);
    const Rows rows(u, "u");
    STD_TORCH_CHECK(shape_of(mask) == with_last(u, mask_bytes(rows.cols)),
                    "mask must be uint8 of shape [..., ceil(p / 8)]");
    check_m(0, rows.cols);
    mask = like(u, mask, ScalarType::Byte, "mask");
    Tensor out = empty(u, shape_of(u), u.scalar_type());
    cuda::apply_mask(element, data_of(rows.tensor), rows.stride, data_of<uint8_t>(mask), rows.rows,
                     rows.cols, mutable_data_of(out), call.stream());
    return out;
}

bool read_rows_once(bool on) { return cuda::read_rows_once(on); }

void probe(int64_t device) {
    Call call{int32_t(device)};
    cuda::probe();
}

std::tuple<Tensor, Tensor> gather_top_m(Tensor wx, Tensor values, Tensor indices, Tensor St,
                                        bool positive) {
    const cuda::DType dtype = dtype_of(St, "St");
    STD_TORCH_CHECK(wx.dim() == 2 && values.dim() == 2 && St.dim() == 2 &&
                        values.size(0) == wx.size(0) && St.size(0) == wx.size(1) &&
                        St.size(1) == wx.size(1) && shape_of(indices) == shape_of(values),
                    "gather_top_m: expected wx [B, p], values and indices [B, m], St [p, p]");
    const int64_t batch = wx.size(0), p = wx.size(1), m = values.size(1);
    check_m(m, p);
    Call call(wx);
    values = like(wx, values, ScalarType::Float, "values");
    indices = like(wx, indices, ScalarType::Long, "indices");
    same_device(wx, St, "St");
    STD_TORCH_CHECK(wx.scalar_type() == ScalarType::Float, "wx must be float32");
    const Rows base(wx, "wx"), atoms(St, "St");
    Tensor out_values = empty(wx, {batch, m}, ScalarType::Float);
    Tensor out_indices = empty(wx, {batch, m}, ScalarType::Long);
    if (p <= cuda::gather_top_m_most()) {
        cuda::gather_top_m(
            {data_of<float>(base.tensor), base.stride, data_of<float>(values),
             data_of<int64_t>(indices), dtype, data_of(atoms.tensor), atoms.stride, batch, p, m,
             positive, mutable_data_of<float>(out_values), mutable_data_of<int64_t>(out_indices)},
            call.stream());
        return {out_values, out_indices};
    }
    // A row does not fit on the chip: through memory, with the same sums.
    Tensor u = empty(wx, {batch, p}, ScalarType::Float);
    cuda::gather_rows(data_of<float>(values), data_of<int64_t>(indices), batch, m, dtype,
                      data_of(atoms.tensor), atoms.stride, p, p, data_of<float>(base.tensor),
                      base.stride, cuda::DType::f32, mutable_data_of(u), call.stream());
    void* workspace = call.workspace(
        u, cuda::top_m_workspace_bytes(cuda::DType::f32, batch, p, m, /*keep=*/false));
    cuda::top_m(cuda::DType::f32, data_of(u), p, batch, p, m, positive, mutable_data_of(out_values),
                mutable_data_of<int64_t>(out_indices), workspace, call.stream());
    return {out_values, out_indices};
}

}  // namespace deepl0::torch_ops::on_cuda
