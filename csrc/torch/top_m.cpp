#include "core/top_m.h"

#include <atomic>

#include "torch/bindings.h"
#include "torch/buffer.h"

namespace deepl0::torch_ops {

std::tuple<Tensor, Tensor> top_m(Tensor u, int64_t m, bool positive) {
    const Rows rows(u, "u");
    check_m(m, rows.cols);
    const DType dtype = dtype_of(u, "u");
    Tensor values = empty(u, with_last(u, m), u.scalar_type());
    Tensor indices = empty(u, with_last(u, m), ScalarType::Long);
    void* values_data = values.mutable_data_ptr();
    auto* indices_data = static_cast<int64_t*>(indices.mutable_data_ptr());
    torch::stable::parallel_for(0, rows.rows, grain_rows(rows.cols), [&](int64_t lo, int64_t hi) {
        const Buffer<char> workspace(int64_t(top_m_workspace_bytes(dtype, rows.cols, m)));
        top_m_kernels().top_m(dtype, rows.data, rows.stride, rows.cols, m, positive, values_data,
                              indices_data, lo, hi, workspace.get());
    });
    return {values, indices};
}

std::tuple<Tensor, Tensor> keep_top_m(Tensor u, int64_t m, bool positive) {
    const Rows rows(u, "u");
    check_m(m, rows.cols);
    const DType dtype = dtype_of(u, "u");
    Tensor out = empty(u, shape_of(u), u.scalar_type());
    Tensor mask = empty(u, with_last(u, mask_bytes(rows.cols)), ScalarType::Byte);
    void* out_data = out.mutable_data_ptr();
    auto* mask_data = static_cast<uint8_t*>(mask.mutable_data_ptr());
    torch::stable::parallel_for(0, rows.rows, grain_rows(rows.cols), [&](int64_t lo, int64_t hi) {
        const Buffer<char> workspace(int64_t(top_m_workspace_bytes(dtype, rows.cols, m)));
        top_m_kernels().keep_top_m(dtype, rows.data, rows.stride, rows.cols, m, positive, out_data,
                                   rows.cols, mask_data, lo, hi, workspace.get());
    });
    return {out, mask};
}

Tensor unpool(Tensor values, Tensor indices, int64_t size) {
    STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long, "indices must be int64");
    STD_TORCH_CHECK(shape_of(values) == shape_of(indices), "indices must have the shape of values");
    const int64_t m = last_size(values, "values");
    STD_TORCH_CHECK(size >= m, "size must be >= ", m, ", got ", size);
    values = torch::stable::contiguous(values);
    indices = torch::stable::contiguous(indices);
    const DType dtype = dtype_of(values, "values");
    Tensor out = empty(values, with_last(values, size), values.scalar_type());
    void* out_data = out.mutable_data_ptr();
    const auto* index = static_cast<const int64_t*>(indices.const_data_ptr());
    const int64_t rows = rows_of(values);
    std::atomic<int64_t> bad{-1};
    torch::stable::parallel_for(0, rows, grain_rows(size), [&](int64_t lo, int64_t hi) {
        const Buffer<char> workspace(int64_t(unpool_workspace_bytes(size)));
        const int64_t at = deepl0::unpool(dtype, values.const_data_ptr(), index, m, size, out_data,
                                          lo, hi, workspace.get());
        if (at >= 0) bad = at;
    });
    if (const int64_t at = bad; at >= 0) {
        const bool inside = 0 <= index[at] && index[at] < size;
        STD_TORCH_CHECK(false, "indices must be distinct and in [0, ", size, "), got ", index[at],
                        inside ? " twice" : "", " in row ", at / m);
    }
    return out;
}

Tensor apply_mask(Tensor u, Tensor mask) {
    const Rows rows(u, "u");
    STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte &&
                        shape_of(mask) == with_last(u, mask_bytes(rows.cols)),
                    "mask must be uint8 of shape [..., ceil(p / 8)]");
    mask = torch::stable::contiguous(mask);
    const DType dtype = dtype_of(u, "u");
    Tensor out = empty(u, shape_of(u), u.scalar_type());
    void* out_data = out.mutable_data_ptr();
    const auto* mask_data = static_cast<const uint8_t*>(mask.const_data_ptr());
    torch::stable::parallel_for(0, rows.rows, grain_rows(rows.cols), [&](int64_t lo, int64_t hi) {
        top_m_kernels().apply_mask(dtype, rows.data, rows.stride, mask_data, rows.cols, out_data,
                                   rows.cols, lo, hi);
    });
    return out;
}

}  // namespace deepl0::torch_ops
