// The functions of thresholds.h at one entry, for the kernels that apply them.
#pragma once

#include "element.cuh"
#include "thresholds.h"

namespace deepl0::cuda {

/// lo and ramp as thresholds.h of core has them.
struct Function {
    ThresholdKind kind;
    bool positive;
    float sigma;

    __device__ bool is_hard() const {
        return kind == ThresholdKind::hard || (kind != ThresholdKind::soft && sigma == 0.0f);
    }

    __device__ float part(float u) const { return positive && u <= 0.0f ? 0.0f : u; }

    __device__ float value(float u, float theta) const {
        if (isnan(theta)) return theta;
        u = part(u);
        const float a = fabsf(u);
        if (kind == ThresholdKind::soft) return a <= theta ? 0.0f : u - copysignf(theta, u);
        if (kind != ThresholdKind::helu || sigma == 0.0f) return a < theta ? 0.0f : u;
        if (a >= theta) return u;
        const float lo = (1.0f - sigma) * theta;
        return a <= lo ? 0.0f : (u - copysignf(lo, u)) / sigma;
    }

    /// d / du and d / dtheta.
    __device__ void slopes(float u, float theta, float& of_u, float& of_theta) const {
        const bool passes = !positive || u > 0.0f;
        u = part(u);
        const float a = fabsf(u);
        of_theta = 0.0f;
        if (kind == ThresholdKind::soft) {
            of_u = a > theta && passes ? 1.0f : 0.0f;
            if (a > theta) of_theta = u > 0.0f ? -1.0f : 1.0f;
            return;
        }
        of_u = a >= theta && passes ? 1.0f : 0.0f;
        if (is_hard() || !(a > (1.0f - sigma) * theta && a < theta)) return;
        of_theta = (u > 0.0f ? -1.0f : 1.0f) * ((1.0f - sigma) / sigma);
        if (kind != ThresholdKind::ste_theta && passes) of_u = 1.0f / sigma;
    }
};

/// theta of V units from `at` on; 0 from p on.
template <int V>
__device__ void load_theta(const float* theta, int step, int at, int p, float (&of)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) of[v] = at + v < p ? theta[(at + v) * step] : 0.0f;
}

/// Calls run with the function whose values are those of h, of a kind that the compiler knows: for
/// loops that would ask for every entry.
template <class Run>
__device__ void by_kind(const Function& h, Run run) {
    if (h.kind == ThresholdKind::soft)
        run(Function{ThresholdKind::soft, h.positive, h.sigma});
    else if (h.kind == ThresholdKind::helu && h.sigma != 0.0f)
        run(Function{ThresholdKind::helu, h.positive, h.sigma});
    else
        run(Function{ThresholdKind::hard, h.positive, 0.0f});
}

}  // namespace deepl0::cuda
