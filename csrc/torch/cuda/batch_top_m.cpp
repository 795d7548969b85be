#include "cuda/batch_top_m.h"

#include "cuda/top_m.h"
#include "torch/cuda/ops.h"

namespace deepl0::torch_ops::on_cuda {

std::tuple<Tensor, Tensor, Tensor> batch_top_m(Tensor u, int64_t m, bool positive) {
    const cuda::DType dtype = dtype_of(u, "u");
    Call call(u);
    const Rows rows(u, "u");
    check_m(m, rows.cols);
    STD_TORCH_CHECK(rows.cols <= cuda::kMostEntries, "rows of more than ", cuda::kMostEntries,
                    " entries are not supported, got ", rows.cols);
    const int64_t entries = rows.rows * m;
    Tensor values = empty(u, {entries}, u.scalar_type());
    Tensor indices = empty(u, {entries}, ScalarType::Long);
    Tensor offsets = empty(u, {rows.rows + 1}, ScalarType::Long);
    void* workspace =
        entries == 0 ? nullptr
                     : call.workspace(u, cuda::batch_top_m_workspace_bytes(rows.rows, rows.cols));
    cuda::batch_top_m(dtype, data_of(rows.tensor), rows.stride, rows.rows, rows.cols, entries,
                      positive, mutable_data_of(values), mutable_data_of<int64_t>(indices),
                      mutable_data_of<int64_t>(offsets), workspace, call.stream());
    return {values, indices, offsets};
}

}  // namespace deepl0::torch_ops::on_cuda
