// The CPU kernels of torch.ops.deepl0.*, one line per operator. The schemas stand in
// deepl0_kernels/ops/<op>.py, the bindings in csrc/torch/<op>.cpp, the kernels in
// csrc/core/<op>.cpp.
#include "torch/bindings.h"

namespace ops = deepl0::torch_ops;

STABLE_TORCH_LIBRARY_IMPL(deepl0, CPU, m) {
    m.impl("threshold", TORCH_BOX(&ops::threshold));
    m.impl("threshold_backward", TORCH_BOX(&ops::threshold_backward));
    m.impl("top_m", TORCH_BOX(&ops::top_m));
    m.impl("unpool", TORCH_BOX(&ops::unpool));
    m.impl("keep_top_m", TORCH_BOX(&ops::keep_top_m));
    m.impl("apply_mask", TORCH_BOX(&ops::apply_mask));
    m.impl("threshold_stage", TORCH_BOX(&ops::threshold_stage));
    m.impl("top_m_stage", TORCH_BOX(&ops::top_m_stage));
    m.impl("encode_l0", TORCH_BOX(&ops::encode_l0));
    m.impl("encode_l0_backward", TORCH_BOX(&ops::encode_l0_backward));
    m.impl("encode_top_m", TORCH_BOX(&ops::encode_top_m));
    m.impl("encode_top_m_backward", TORCH_BOX(&ops::encode_top_m_backward));
    m.impl("decode", TORCH_BOX(&ops::decode));
    m.impl("decode_backward", TORCH_BOX(&ops::decode_backward));
    m.impl("omp", TORCH_BOX(&ops::omp));
    m.impl("iht_top_m", TORCH_BOX(&ops::iht_top_m));
    m.impl("iht_l0", TORCH_BOX(&ops::iht_l0));
    m.impl("fista", TORCH_BOX(&ops::fista));
}
