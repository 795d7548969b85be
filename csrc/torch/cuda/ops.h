// The operators of torch.ops.deepl0_cuda: what the launchers of deepl0_kernels/cuda are made of.
// Contracts and bytes moved: csrc/cuda/<file>.h.
#pragma once

#include "torch/cuda/bindings.h"

namespace deepl0::torch_ops::on_cuda {

std::tuple<Tensor, Tensor> top_m(Tensor u, int64_t m, bool positive);
std::tuple<Tensor, Tensor> keep_top_m(Tensor u, int64_t m, bool positive);
Tensor unpool(Tensor values, Tensor indices, int64_t size);
Tensor apply_mask(Tensor u, Tensor mask);
std::tuple<Tensor, Tensor, Tensor> batch_top_m(Tensor u, int64_t m, bool positive);

/// top_m of wx + z S' for the sparse z = (values, indices); St is S'.
std::tuple<Tensor, Tensor> gather_top_m(Tensor wx, Tensor values, Tensor indices, Tensor St,
                                        bool positive);

/// A contiguous [columns, rows] of a matrix [rows, columns].
Tensor transpose(Tensor matrix);

/// [B, n]: sums of rows of w; float32 if `wide`, else of w's dtype.
Tensor gather_rows(Tensor values, Tensor indices, Tensor w, bool wide);
Tensor row_dots(Tensor indices, Tensor w, Tensor x);

/// start [units + 1], unit and entry [entries]: the indices [..., B, m] by unit.
std::tuple<Tensor, Tensor, Tensor> group(Tensor indices, int64_t units);
/// [units, n] of x's dtype.
Tensor combine(Tensor start, Tensor unit, Tensor entry, Tensor c, Tensor x);
void outer(Tensor start, Tensor entry, Tensor c, Tensor indices, Tensor values, Tensor out,
           bool accumulate);
void outer_atomic(Tensor rows, Tensor c, Tensor indices, Tensor values, Tensor out,
                  bool accumulate);
Tensor product_on_support(Tensor upper, Tensor c, Tensor lower, Tensor s);

/// Raises the CUDA error that a launch on the device would meet; nothing is launched.
void probe(int64_t device);

}  // namespace deepl0::torch_ops::on_cuda
