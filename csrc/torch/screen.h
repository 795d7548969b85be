// What the other bindings need of screening.
#pragma once

#include <tuple>

#include "torch/panels.h"

namespace deepl0::torch_ops {

/// Whether screening in bf16 (packing W included) is the fastest way to one stage here: rule and
/// measurements in docs/screening.md. The environment variable DEEPL0_SCREEN overrides it: 0 never,
/// 1 wherever the CPU can. Throws at another word.
bool screen_pays(int64_t batch, int64_t p, int64_t m);

/// The m entries of largest |u|, u = x W': x [B, n], W [p, n] float32 -> values [B, m] float32,
/// indices [B, m] int64, ascending. [B, p] is never formed. The same bits for every batch, number
/// of threads and DEEPL0_SCREEN.
std::tuple<Tensor, Tensor> screen_top_m(Tensor x, Tensor W, int64_t m);

}  // namespace deepl0::torch_ops
