// Adam on the rows of a parameter whose gradients are not all 0; the others stay as they are.
#pragma once

#include <cstdint>

namespace deepl0 {

template <class T>
struct AdamStep {
    T beta1, beta2;
    T step_size;  // lr / (1 - beta1^t)
    T root;       // sqrt(1 - beta2^t)
    T eps;
    bool unit_norm;  // keep the rows at norm 1
};

/// Kernels of one ISA level, T = float or double.
template <class T>
struct SparseAdamKernels {
    /// Of `rows` rows of n, contiguous, those whose gradient g is not all 0:
    ///     g -= w <g, w> / <w, w> with unit_norm (w = 0: nothing)
    ///     a += (1 - beta1) (g - a),  b = beta2 b + (1 - beta2) g^2
    ///     w -= step_size a / (sqrt(b) / root + eps)
    ///     w /= |w| with unit_norm (w = 0: nothing).
    /// Four arrays read and three written, once; of other rows the gradient is read alone.
    void (*step)(AdamStep<T> by, int64_t rows, int64_t n, const T* g, T* w, T* a, T* b);
};

/// The kernels of the ISA level in force.
template <class T>
const SparseAdamKernels<T>& sparse_adam_kernels();

}  // namespace deepl0
