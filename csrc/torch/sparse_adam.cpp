#include "core/sparse_adam.h"

#include <cmath>

#include "torch/bindings.h"

namespace deepl0::torch_ops {
namespace {

template <class T>
void step(Tensor& param, const Tensor& grad, Tensor& first, Tensor& second, double lr, double beta1,
          double beta2, double eps, int64_t t, bool unit_norm) {
    const AdamStep<T> by{T(beta1),
                         T(beta2),
                         T(lr / (1 - std::pow(beta1, double(t)))),
                         T(std::sqrt(1 - std::pow(beta2, double(t)))),
                         T(eps),
                         unit_norm};
    const int64_t n = param.size(1);
    const auto* g = static_cast<const T*>(grad.const_data_ptr());
    auto* w = static_cast<T*>(param.mutable_data_ptr());
    auto* a = static_cast<T*>(first.mutable_data_ptr());
    auto* b = static_cast<T*>(second.mutable_data_ptr());
    // About a page of every array at a time.
    const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, n));
    torch::stable::parallel_for(0, param.size(0), grain, [&](int64_t r0, int64_t r1) {
        const int64_t at = r0 * n;
        sparse_adam_kernels<T>().step(by, r1 - r0, n, g + at, w + at, a + at, b + at);
    });
}

}  // namespace

void sparse_adam_(Tensor param, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, double lr,
                  double beta1, double beta2, double eps, int64_t t, bool unit_norm) {
    const char* op = "sparse_adam_";
    const ScalarType type = param.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
                    ": param must be float32 or float64");
    STD_TORCH_CHECK(t >= 1, op, ": t must be >= 1, got ", t);
    for (const Tensor& other : {param, grad, exp_avg, exp_avg_sq})
        STD_TORCH_CHECK(other.dim() == 2 && other.is_contiguous() && other.is_cpu() &&
                            shape_of(other) == shape_of(param) && other.scalar_type() == type,
                        op, ": param, grad and both averages must be alike, [rows, n], contiguous");
    const auto run = type == ScalarType::Double ? step<double> : step<float>;
    run(param, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, t, unit_norm);
}

}  // namespace deepl0::torch_ops
