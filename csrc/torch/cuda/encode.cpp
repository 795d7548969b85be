#include "cuda/encode_persistent.h"
#include "torch/cuda/ops.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

/// Of a contiguous bfloat16 tensor that is read 16 bytes at a time.
const void* packs_of(const Tensor& first, const Tensor& t, const char* name) {
    same_device(first, t, name);
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::BFloat16 && t.is_contiguous(),
                    "encode_top_m: ", name, " must be bfloat16 and contiguous");
    const void* data = data_of(t);
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0, "encode_top_m: ", name,
                    " must be aligned to 16 bytes");
    return data;
}

}  // namespace

int64_t persistent_most(int64_t device) {
    Call call(static_cast<int32_t>(device));
    return cuda::persistent_most();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m(Tensor x, Tensor W, Tensor S, int64_t p,
                                                        int64_t m, int64_t num_stages, bool save) {
    STD_TORCH_CHECK(p <= cuda::kPersistentP && num_stages >= 1,
                    "encode_top_m: expected p <= ", cuda::kPersistentP, " and a stage, got ", p,
                    " and ", num_stages);
    STD_TORCH_CHECK(0 <= m && m <= p, "m must be >= 0 and <= p = ", p, ", got ", m);
    const int64_t columns = cuda::persistent_columns(p);
    STD_TORCH_CHECK(x.dim() == 2 && x.size(1) % cuda::kPersistentDepth == 0 &&
                        shape_of(W) == std::vector<int64_t>({columns, x.size(1)}),
                    "encode_top_m: expected x [B, n] and W [", columns, ", n], n a multiple of ",
                    cuda::kPersistentDepth);
    const bool steps = S.dim() == 3;
    STD_TORCH_CHECK(num_stages == 1 || ((S.dim() == 2 || (steps && S.size(0) == num_stages - 1)) &&
                                        S.size(-1) == columns && S.size(-2) == columns),
                    "encode_top_m: S must be [", columns, ", ", columns, "], or one a step");
    const int64_t batch = x.size(0), before = save ? num_stages - 1 : 0;
    Call call(x);
    Tensor values = empty(x, {batch, m}, ScalarType::Float);
    Tensor indices = empty(x, {batch, m}, ScalarType::Long);
    Tensor saved_values = empty(x, {before, batch, m}, ScalarType::Float);
    Tensor saved_indices = empty(x, {before, batch, m}, ScalarType::Long);
    cuda::PersistentEncoder encoder;
    encoder.x = packs_of(x, x, "x");
    encoder.W = packs_of(x, W, "W");
    encoder.S = num_stages == 1 ? nullptr : packs_of(x, S, "S");
    encoder.s_stage = steps ? columns * columns : 0;
    encoder.rows = batch;
    encoder.n = x.size(1);
    encoder.p = p;
    encoder.m = m;
    encoder.stages = int(num_stages);
    encoder.values = mutable_data_of<float>(values);
    encoder.indices = mutable_data_of<int64_t>(indices);
    encoder.saved_values = before == 0 ? nullptr : mutable_data_of<float>(saved_values);
    encoder.saved_indices = before == 0 ? nullptr : mutable_data_of<int64_t>(saved_indices);
    const size_t bytes = cuda::persistent_workspace_bytes(batch, p, int(num_stages));
    encoder.workspace = bytes == 0 ? nullptr : call.workspace(x, bytes);
    cuda::encode_top_m(encoder, call.stream());
    return {values, indices, saved_values, saved_indices};
}

}  // namespace deepl0::torch_ops::on_cuda
