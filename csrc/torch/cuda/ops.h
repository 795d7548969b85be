// The operators of torch.ops.deepl0_cuda. Those that torch.ops.deepl0 has as well have its schemas
// and serve it: one a pass, composed of the kernels and of torch's products on the current stream.
// The others are the kernels alone, for tests. Contracts and bytes moved: csrc/cuda/<file>.h.
#pragma once

#include "torch/cuda/bindings.h"

namespace deepl0::torch_ops::on_cuda {

std::tuple<Tensor, Tensor> top_m(Tensor u, int64_t m, bool positive);
std::tuple<Tensor, Tensor> keep_top_m(Tensor u, int64_t m, bool positive);
Tensor unpool(Tensor values, Tensor indices, int64_t size);
Tensor apply_mask(Tensor u, Tensor mask);
std::tuple<Tensor, Tensor, Tensor> batch_top_m(Tensor u, int64_t m, bool positive);

std::tuple<Tensor, Tensor> encode_top_m(Tensor x, Tensor w, std::optional<Tensor> s,
                                        std::optional<Tensor> bias, int64_t m, int64_t stages,
                                        bool positive);
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_saving(Tensor x, Tensor w,
                                                               std::optional<Tensor> s,
                                                               std::optional<Tensor> bias,
                                                               int64_t m, int64_t stages,
                                                               bool positive);
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_backward(
    Tensor grad_values, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
    Tensor saved_indices, Tensor x, Tensor w, std::optional<Tensor> s, int64_t mask);
std::tuple<Tensor, Tensor> encode_top_m_factored(Tensor x, Tensor w, Tensor d,
                                                 std::optional<Tensor> bias,
                                                 std::optional<Tensor> step, std::vector<int64_t> m,
                                                 bool positive);
std::tuple<Tensor, Tensor, Tensor, Tensor> encode_top_m_factored_saving(
    Tensor x, Tensor w, Tensor d, std::optional<Tensor> bias, std::optional<Tensor> step,
    std::vector<int64_t> m, bool positive);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> encode_top_m_factored_backward(
    Tensor grad_values, std::optional<Tensor> values, Tensor indices, Tensor saved_values,
    Tensor saved_indices, Tensor x, Tensor w, Tensor d, std::optional<Tensor> step,
    std::vector<int64_t> m, int64_t mask);
Tensor encode_l0(Tensor x, Tensor w, std::optional<Tensor> s, std::optional<Tensor> bias,
                 Tensor theta, int64_t stages, double sigma, Threshold kind);
std::tuple<Tensor, Tensor> encode_l0_saving(Tensor x, Tensor w, std::optional<Tensor> s,
                                            std::optional<Tensor> bias, Tensor theta,
                                            int64_t stages, double sigma, Threshold kind);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> encode_l0_backward(Tensor grad_z, Tensor saved,
                                                                      Tensor x, Tensor w,
                                                                      std::optional<Tensor> s,
                                                                      Tensor theta, double sigma,
                                                                      Threshold kind, int64_t mask);
Tensor threshold(Tensor u, Tensor theta, double sigma, Threshold kind);
std::tuple<Tensor, Tensor> threshold_backward(Tensor grad_out, Tensor u, Tensor theta, double sigma,
                                              Threshold kind, int64_t mask);
Tensor decode(Tensor values, Tensor indices, Tensor d);
std::tuple<Tensor, Tensor> decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor d,
                                           int64_t mask);

/// p or m beyond what cuda/omp.h takes is refused.
std::tuple<Tensor, Tensor, Tensor, Tensor> omp(Tensor x, Tensor d, int64_t m, double tol,
                                               bool positive);

/// More than what cuda/least_squares.h takes is refused.
Tensor least_squares(Tensor gram, Tensor right, Tensor support, double floor);

/// top_m of wx + z S' for the sparse z = (values, indices); St is S'.
std::tuple<Tensor, Tensor> gather_top_m(Tensor wx, Tensor values, Tensor indices, Tensor St,
                                        bool positive);

/// top_m of x W' + b + z, screened whatever its size and the switch; z = (z_values, z_indices).
std::tuple<Tensor, Tensor> screened_top_m(Tensor x, Tensor w, std::optional<Tensor> bias, int64_t m,
                                          bool positive, std::optional<Tensor> z_values,
                                          std::optional<Tensor> z_indices);

/// A contiguous [columns, rows] of a matrix [rows, columns].
Tensor transpose_copy(Tensor matrix);

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

/// rules.h.
void tell_rules(bool tf32, bool atomics);
void force_rules(Name way, int64_t elements);

/// Raises the CUDA error that a launch on the device would meet; nothing is launched.
void probe(int64_t device);
bool read_rows_once(bool on);
bool screen_stages(bool on);
bool fuse_stages(bool on);

}  // namespace deepl0::torch_ops::on_cuda
