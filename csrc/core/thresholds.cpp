#if defined(__GNUC__) && !defined(__clang__)
// GCC turns a select between computed arms into a branch, and keeps the loop scalar, for the sake
// of floating-point exceptions that nobody looks at.
#pragma GCC optimize("no-trapping-math")
#endif

#include "thresholds.h"

#include "kernel_table.h"
#include "simd.h"
#include "sizes.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

// The loops below are plain C++ that the compiler vectorises: no branches, every arm computed.

// Not <cmath>: an inline function of the library must not be compiled here (see isa.h).
DEEPL0_INLINE float magnitude(float x) { return __builtin_fabsf(x); }
DEEPL0_INLINE double magnitude(double x) { return __builtin_fabs(x); }
DEEPL0_INLINE float with_sign(float x, float sign) { return __builtin_copysignf(x, sign); }
DEEPL0_INLINE double with_sign(double x, double sign) { return __builtin_copysign(x, sign); }

enum class Form { hard, soft, helu };

/// u, or max(u, 0), of which a NaN stays.
template <bool Positive, typename T>
DEEPL0_INLINE T part(T u) {
    return Positive && u <= T(0) ? T(0) : u;
}

/// theta-dependent constants of a call.
template <typename T>
struct Ramp {
    T one_minus_sigma, inv_sigma;
    explicit Ramp(double sigma)
        : one_minus_sigma(T(1.0 - sigma)), inv_sigma(sigma > 0 ? T(1.0 / sigma) : T(0)) {}
};

template <Form F, bool Positive, typename T>
DEEPL0_INLINE T shrink(T v, T theta, const Ramp<T>& ramp) {
    const T u = part<Positive>(v), a = Positive ? u : magnitude(u);
    const auto signed_as_u = [&](T x) { return Positive ? x : with_sign(x, u); };
    if (F == Form::soft) {
        const T shrunk = signed_as_u(a - theta);
        return a <= theta ? T(0) : shrunk;
    }
    T below = T(0);
    if (F == Form::helu) {
        const T lo = ramp.one_minus_sigma * theta;
        const T slope = signed_as_u((a - lo) * ramp.inv_sigma);
        below = a <= lo ? T(0) : slope;
    }
    const T kept = a < theta ? below : u;
    return theta == theta ? kept : theta;
}

/// c of the forward form C, e of the form E (hard: none).
template <Form C, Form E, bool Positive, typename T>
DEEPL0_INLINE void coefficients(T v, T theta, const Ramp<T>& ramp, T& c, T& e) {
    const T u = part<Positive>(v), a = Positive ? u : magnitude(u);
    const auto against_u = [&](T x) { return Positive ? -x : with_sign(x, -u); };
    e = T(0);
    if (C == Form::soft) {
        c = a > theta ? T(1) : T(0);
        e = a > theta ? against_u(T(1)) : T(0);
        return;
    }
    c = (a >= theta) & (!Positive | (v > T(0))) ? T(1) : T(0);
    if (E == Form::helu) {
        const T lo = ramp.one_minus_sigma * theta;
        const T slope = against_u(ramp.one_minus_sigma * ramp.inv_sigma);
        const bool on_ramp = (a > lo) & (a < theta);
        e = on_ramp ? slope : T(0);
        if (C == Form::helu) c = on_ramp ? ramp.inv_sigma : c;
    }
}

// The arithmetic, in the compute type. Half types come here by tiles of a row, so that no loop is
// compiled for every pair of a form and a type.

template <typename T>
using Forward = void (*)(const T* x, int64_t x_stride, const T* theta, Ramp<T> ramp, T* y,
                         int64_t y_stride, int64_t rows, int64_t n);

/// y = h(x) of rows of n elements.
template <Form F, bool Positive, bool PerEntry, typename T>
void forward(const T* x, int64_t x_stride, const T* theta, Ramp<T> ramp, T* y, int64_t y_stride,
             int64_t rows, int64_t n) {
    const T theta0 = theta[0];
    for (int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
        // x and y are one array in place, otherwise apart: no element depends on another.
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i)
            y[i] = shrink<F, Positive>(x[i], PerEntry ? theta[i] : theta0, ramp);
    }
}

template <typename T>
using Backward = void (*)(const T* g, int64_t g_stride, const T* x, int64_t x_stride,
                          const T* theta, Ramp<T> ramp, T* y, int64_t y_stride, T* sum,
                          int64_t rows, int64_t n);

/// y = c(x) g of rows of n elements, and sum += e(x) g.
template <Form C, Form E, bool Positive, bool PerEntry, typename T>
void backward(const T* g, int64_t g_stride, const T* x, int64_t x_stride, const T* theta,
              Ramp<T> ramp, T* y, int64_t y_stride, T* sum, int64_t rows, int64_t n) {
    const T theta0 = theta[0];
    for (int64_t r = 0; r < rows; ++r, g += g_stride, x += x_stride, y += y_stride) {
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
            T c, e;
            coefficients<C, E, Positive>(x[i], PerEntry ? theta[i] : theta0, ramp, c, e);
            const T gi = g[i];
            y[i] = c * gi;
            sum[i] += e * gi;
        }
    }
}

/// By positive, then whether theta is per entry.
template <Form F, typename T>
constexpr Forward<T> forward_of(bool positive, bool per_entry) {
    constexpr Forward<T> table[2][2] = {{forward<F, false, false, T>, forward<F, false, true, T>},
                                        {forward<F, true, false, T>, forward<F, true, true, T>}};
    return table[positive][per_entry];
}

template <typename T>
Forward<T> forward_of(Threshold h, bool per_entry, double sigma) {
    const auto of = h.kind == ThresholdKind::soft                ? forward_of<Form::soft, T>
                    : h.kind == ThresholdKind::helu && sigma > 0 ? forward_of<Form::helu, T>
                                                                 : forward_of<Form::hard, T>;
    return of(h.positive, per_entry);
}

template <Form C, Form E, typename T>
constexpr Backward<T> backward_of(bool positive, bool per_entry) {
    constexpr Backward<T> table[2][2] = {
        {backward<C, E, false, false, T>, backward<C, E, false, true, T>},
        {backward<C, E, true, false, T>, backward<C, E, true, true, T>}};
    return table[positive][per_entry];
}

template <typename T>
Backward<T> backward_of(Threshold h, bool per_entry, double sigma) {
    constexpr Form hard = Form::hard, soft = Form::soft, helu = Form::helu;
    auto of = backward_of<hard, hard, T>;
    if (h.kind == ThresholdKind::soft)
        of = backward_of<soft, soft, T>;
    else if (sigma > 0 && (h.kind == ThresholdKind::helu || h.kind == ThresholdKind::ste))
        of = backward_of<helu, helu, T>;
    else if (sigma > 0 && h.kind == ThresholdKind::ste_theta)
        of = backward_of<hard, helu, T>;
    return of(h.positive, per_entry);
}

// What is stored.

constexpr int64_t kTile = 256;

template <typename S>
void widen(const S* p, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + i, load(p + i));
    if (i < n) store_first(to + i, load_first(p + i, int(n - i)), int(n - i));
}

template <typename S>
void narrow(const float* from, int64_t n, S* p) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(p + i, load(from + i));
    if (i < n) store_first(p + i, load_first(from + i, int(n - i)), int(n - i));
}

template <typename S>
struct ComputeType {
    using type = float;
};
template <>
struct ComputeType<double> {
    using type = double;
};
template <typename S>
constexpr bool kHalf = sizeof(S) == 2;

template <typename S>
void forward_rows(Threshold h, const void* from, int64_t u_stride, const void* theta_data,
                  bool per_entry, double sigma, void* to, int64_t out_stride, int64_t p,
                  int64_t row_begin, int64_t row_end) {
    using T = typename ComputeType<S>::type;
    const S* u = static_cast<const S*>(from) + row_begin * u_stride;
    S* out = static_cast<S*>(to) + row_begin * out_stride;
    const T* theta = static_cast<const T*>(theta_data);
    const Ramp<T> ramp(sigma);
    const Forward<T> run = forward_of<T>(h, per_entry, sigma);
    const int64_t rows = row_end - row_begin;
    if constexpr (!kHalf<S>) {
        run(u, u_stride, theta, ramp, out, out_stride, rows, p);
    } else {
        float tile[kTile];
        for (int64_t r = 0; r < rows; ++r, u += u_stride, out += out_stride) {
            for (int64_t j = 0; j < p; j += kTile) {
                const int64_t n = smaller(kTile, p - j);
                widen(u + j, n, tile);
                run(tile, 0, per_entry ? theta + j : theta, ramp, tile, 0, 1, n);
                narrow(tile, n, out + j);
            }
        }
    }
}

template <typename S>
void backward_blocks(Threshold h, const void* grad_out, int64_t grad_out_stride, const void* from,
                     int64_t u_stride, const void* theta_data, bool per_entry, double sigma,
                     void* to, int64_t rows, int64_t p, int64_t block_begin, int64_t block_end,
                     double* partial) {
    using T = typename ComputeType<S>::type;
    const S *u = static_cast<const S*>(from), *grad = static_cast<const S*>(grad_out);
    S* const grad_u = static_cast<S*>(to);
    const T* theta = static_cast<const T*>(theta_data);
    const Ramp<T> ramp(sigma);
    const Backward<T> run = backward_of<T>(h, per_entry, sigma);
    for (int64_t b = block_begin; b < block_end; ++b) {
        const int64_t first_row = b * kThresholdBlockRows;
        const int64_t last_row = smaller(rows, first_row + kThresholdBlockRows);
        double block_sum = 0;
        for (int64_t j = 0; j < p; j += kTile) {
            const int64_t n = smaller(kTile, p - j);
            const T* t = per_entry ? theta + j : theta;
            T sum[kTile] = {}, y[kTile];
            if constexpr (!kHalf<S>) {
                T* const out = grad_u ? grad_u + first_row * p + j : y;
                run(grad + first_row * grad_out_stride + j, grad_out_stride,
                    u + first_row * u_stride + j, u_stride, t, ramp, out, grad_u ? p : 0, sum,
                    last_row - first_row, n);
            } else {
                float x[kTile], g[kTile];
                for (int64_t r = first_row; r < last_row; ++r) {
                    widen(u + r * u_stride + j, n, x);
                    widen(grad + r * grad_out_stride + j, n, g);
                    run(g, 0, x, 0, t, ramp, y, 0, sum, 1, n);
                    if (grad_u) narrow(y, n, grad_u + r * p + j);
                }
            }
            if (!partial) continue;
            if (per_entry) {
                for (int64_t i = 0; i < n; ++i) partial[b * p + j + i] = double(sum[i]);
            } else {
                for (int64_t i = 0; i < n; ++i) block_sum += double(sum[i]);
            }
        }
        if (!per_entry && partial) partial[b] = block_sum;
    }
}

void threshold(DType dtype, Threshold kind, const void* u, int64_t u_stride, const void* theta,
               bool theta_per_entry, double sigma, void* out, int64_t out_stride, int64_t p,
               int64_t row_begin, int64_t row_end) {
    const auto run = dtype == DType::f32   ? forward_rows<float>
                     : dtype == DType::f64 ? forward_rows<double>
                     : dtype == DType::f16 ? forward_rows<half>
                                           : forward_rows<bfloat16>;
    run(kind, u, u_stride, theta, theta_per_entry, sigma, out, out_stride, p, row_begin, row_end);
}

void threshold_backward(DType dtype, Threshold kind, const void* grad_out, int64_t grad_out_stride,
                        const void* u, int64_t u_stride, const void* theta, bool theta_per_entry,
                        double sigma, void* grad_u, int64_t rows, int64_t p, int64_t block_begin,
                        int64_t block_end, void* workspace) {
    const auto run = dtype == DType::f32   ? backward_blocks<float>
                     : dtype == DType::f64 ? backward_blocks<double>
                     : dtype == DType::f16 ? backward_blocks<half>
                                           : backward_blocks<bfloat16>;
    run(kind, grad_out, grad_out_stride, u, u_stride, theta, theta_per_entry, sigma, grad_u, rows,
        p, block_begin, block_end, static_cast<double*>(workspace));
}

void round(DType type, float* z, int64_t n) { round_to(type, z, n); }

}  // namespace

extern const ThresholdKernels threshold_table;
const ThresholdKernels threshold_table = {threshold, threshold_backward, round};

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLE(ThresholdKernels, threshold)

namespace {

template <typename T>
int64_t first_bad(const T* theta, int64_t n, bool zero_allowed) {
    for (int64_t i = 0; i < n; ++i) {
        if (!(zero_allowed ? theta[i] >= T(0) : theta[i] > T(0))) return i;
    }
    return -1;
}

template <typename T>
void reduce_partials(const double* partial, int64_t blocks, int64_t stride, T* out, int64_t begin,
                     int64_t end) {
    constexpr int64_t kTile = 256;
    for (int64_t j = begin; j < end; j += kTile) {
        const int64_t n = smaller(kTile, end - j);
        double sum[kTile] = {};
        for (int64_t b = 0; b < blocks; ++b) {
            for (int64_t i = 0; i < n; ++i) sum[i] += partial[b * stride + j + i];
        }
        for (int64_t i = 0; i < n; ++i) out[j + i] = T(sum[i]);
    }
}

}  // namespace

int64_t first_bad_theta(DType dtype, Threshold kind, const void* theta, int64_t n) {
    const bool zero_allowed = kind.may_be_zero();
    return dtype == DType::f64 ? first_bad(static_cast<const double*>(theta), n, zero_allowed)
                               : first_bad(static_cast<const float*>(theta), n, zero_allowed);
}

int64_t threshold_blocks(int64_t rows) {
    return (rows + kThresholdBlockRows - 1) / kThresholdBlockRows;
}

size_t threshold_backward_workspace_bytes(int64_t rows, int64_t p, bool theta_per_entry) {
    return size_t(threshold_blocks(rows)) * size_t(theta_per_entry ? p : 1) * sizeof(double);
}

void reduce_grad_theta(DType dtype, const void* workspace, int64_t rows, int64_t p,
                       bool theta_per_entry, void* grad_theta, int64_t begin, int64_t end) {
    const double* partial = static_cast<const double*>(workspace);
    const int64_t blocks = threshold_blocks(rows), stride = theta_per_entry ? p : 1;
    if (dtype == DType::f64) {
        reduce_partials(partial, blocks, stride, static_cast<double*>(grad_theta), begin, end);
    } else {
        reduce_partials(partial, blocks, stride, static_cast<float*>(grad_theta), begin, end);
    }
}

#endif

}  // namespace deepl0
