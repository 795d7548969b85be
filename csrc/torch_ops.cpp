// The CPU kernels of torch.ops.deepl0.*, one line per operator. The schemas stand in
// deepl0_kernels/ops/<op>.py, the bindings in csrc/torch/<op>.cpp, the kernels in
// csrc/core/<op>.cpp.
#include "torch/addresses.h"
#include "torch/bindings.h"

namespace ops = deepl0::torch_ops;

namespace {

using deepl0::Threshold;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// An operator, and its twin that also returns what the backward reads, are one function.

Tensor threshold_stage(Tensor x, Tensor W, Tensor z, Tensor S, Optional bias, Tensor theta,
                       double sigma, Threshold kind) {
    return std::get<0>(ops::threshold_stage(x, W, z, S, bias, theta, sigma, kind, false));
}

std::tuple<Tensor, Tensor> threshold_stage_saving(Tensor x, Tensor W, Tensor z, Tensor S,
                                                  Optional bias, Tensor theta, double sigma,
                                                  Threshold kind) {
    return ops::threshold_stage(x, W, z, S, bias, theta, sigma, kind, true);
}

Tensor encode_l0(Tensor x, Tensor W, Optional S, Optional bias, Tensor theta, int64_t num_stages,
                 double sigma, Threshold kind) {
    return std::get<0>(ops::encode_l0(x, W, S, bias, theta, num_stages, sigma, kind, false));
}

std::tuple<Tensor, Tensor> encode_l0_saving(Tensor x, Tensor W, Optional S, Optional bias,
                                            Tensor theta, int64_t num_stages, double sigma,
                                            Threshold kind) {
    return ops::encode_l0(x, W, S, bias, theta, num_stages, sigma, kind, true);
}

std::tuple<Tensor, Tensor> encode_top_m(Tensor x, Tensor W, Optional S, Optional bias, int64_t m,
                                        int64_t num_stages, bool positive) {
    auto [values, indices, saved_values, saved_indices] =
        ops::encode_top_m(x, W, S, bias, m, num_stages, positive, false);
    return {values, indices};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_saving(Tensor x, Tensor W, Optional S,
                                                               Optional bias, int64_t m,
                                                               int64_t num_stages, bool positive) {
    return ops::encode_top_m(x, W, S, bias, m, num_stages, positive, true);
}

Tensor encode_l0_factored(Tensor x, Tensor W, Tensor D, Optional bias, Optional step, Tensor theta,
                          int64_t num_stages, double sigma, Threshold kind) {
    return std::get<0>(
        ops::encode_l0_factored(x, W, D, bias, step, theta, num_stages, sigma, kind, false));
}

std::tuple<Tensor, Tensor> encode_l0_factored_saving(Tensor x, Tensor W, Tensor D, Optional bias,
                                                     Optional step, Tensor theta,
                                                     int64_t num_stages, double sigma,
                                                     Threshold kind) {
    return ops::encode_l0_factored(x, W, D, bias, step, theta, num_stages, sigma, kind, true);
}

std::tuple<Tensor, Tensor> encode_top_m_factored(Tensor x, Tensor W, Tensor D, Optional bias,
                                                 Optional step, std::vector<int64_t> m,
                                                 bool positive) {
    auto [values, indices, saved_values, saved_indices] =
        ops::encode_top_m_factored(x, W, D, bias, step, m, positive, false);
    return {values, indices};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_factored_saving(Tensor x, Tensor W,
                                                                        Tensor D, Optional bias,
                                                                        Optional step,
                                                                        std::vector<int64_t> m,
                                                                        bool positive) {
    return ops::encode_top_m_factored(x, W, D, bias, step, m, positive, true);
}

template <class Library>
void implement(Library& m) {
    m.impl("threshold", TORCH_BOX(&ops::threshold));
    m.impl("threshold_backward", TORCH_BOX(&ops::threshold_backward));
    m.impl("top_m", TORCH_BOX(&ops::top_m));
    m.impl("unpool", TORCH_BOX(&ops::unpool));
    m.impl("keep_top_m", TORCH_BOX(&ops::keep_top_m));
    m.impl("apply_mask", TORCH_BOX(&ops::apply_mask));
    m.impl("batch_top_m", TORCH_BOX(&ops::batch_top_m));
    m.impl("threshold_stage", TORCH_BOX(&threshold_stage));
    m.impl("threshold_stage_saving", TORCH_BOX(&threshold_stage_saving));
    m.impl("top_m_stage", TORCH_BOX(&ops::top_m_stage));
    m.impl("encode_l0", TORCH_BOX(&encode_l0));
    m.impl("encode_l0_saving", TORCH_BOX(&encode_l0_saving));
    m.impl("encode_l0_backward", TORCH_BOX(&ops::encode_l0_backward));
    m.impl("encode_top_m", TORCH_BOX(&encode_top_m));
    m.impl("encode_top_m_saving", TORCH_BOX(&encode_top_m_saving));
    m.impl("encode_top_m_backward", TORCH_BOX(&ops::encode_top_m_backward));
    m.impl("encode_l0_factored", TORCH_BOX(&encode_l0_factored));
    m.impl("encode_l0_factored_saving", TORCH_BOX(&encode_l0_factored_saving));
    m.impl("encode_l0_factored_backward", TORCH_BOX(&ops::encode_l0_factored_backward));
    m.impl("encode_top_m_factored", TORCH_BOX(&encode_top_m_factored));
    m.impl("encode_top_m_factored_saving", TORCH_BOX(&encode_top_m_factored_saving));
    m.impl("encode_top_m_factored_backward", TORCH_BOX(&ops::encode_top_m_factored_backward));
    m.impl("shard_top_m", TORCH_BOX(&ops::shard_top_m));
    m.impl("decode", TORCH_BOX(&ops::decode));
    m.impl("decode_backward", TORCH_BOX(&ops::decode_backward));
    m.impl("omp", TORCH_BOX(&ops::omp));
    m.impl("least_squares", TORCH_BOX(&ops::least_squares));
    m.impl("iht_top_m", TORCH_BOX(&ops::iht_top_m));
    m.impl("iht_l0", TORCH_BOX(&ops::iht_l0));
    m.impl("fista", TORCH_BOX(&ops::fista));
    m.impl("sparse_adam_", TORCH_BOX(&ops::sparse_adam_));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deepl0, CPU, m) { implement(m); }

namespace deepl0::torch_ops {

Boxed cpu_kernel(const std::string& name) {
    static const Addresses all([](Addresses& m) { implement(m); });
    return all.of(name);
}

}  // namespace deepl0::torch_ops
