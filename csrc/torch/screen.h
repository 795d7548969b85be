// What the other bindings need of screening.
#pragma once

#include <tuple>

#include "torch/panels.h"

namespace deepl0::torch_ops {

/// Whether one stage is served by screen_top_m: always for large p, where its codes are promised to
/// be batch-invariant, below that where screening in bf16 (packing W included) is the fastest way.
/// Rule and measurements in docs/screening.md. The environment variable DEEPL0_SCREEN forbids bf16
/// (0) or asks for it wherever the CPU can (1). Throws at another word.
bool screens(int64_t batch, int64_t p, int64_t m);

/// The m entries of largest |u|, u = x W' + bias, or of max(u, 0): x [B, n], W [p, n], bias [p]
/// (may be null) float32, checked, -> values [B, m] float32, indices [B, m] int64, ascending. [B,
/// p] is never formed. The same bits for every batch, number of threads and DEEPL0_SCREEN.
std::tuple<Tensor, Tensor> screen_top_m(Tensor x, Tensor W, const float* bias, int64_t m,
                                        bool positive);

}  // namespace deepl0::torch_ops
