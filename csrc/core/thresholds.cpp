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

constexpr int64_t kTile = 256;

/// A tile of up to kTile elements in the compute type: the storage itself, or a converted copy.
template <typename S>
struct TileIn {
    float buffer[kTile];
    const float* open(const S* p, int64_t n) {
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) store(buffer + i, load(p + i));
        if (i < n) store_first(buffer + i, load_first(p + i, int(n - i)), int(n - i));
        return buffer;
    }
};
template <>
struct TileIn<float> {
    const float* open(const float* p, int64_t) { return p; }
};
template <>
struct TileIn<double> {
    const double* open(const double* p, int64_t) { return p; }
};

template <typename S>
struct TileOut {
    float buffer[kTile];
    float* open(S*) { return buffer; }
    void close(S* p, int64_t n) {
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) store(p + i, load(buffer + i));
        if (i < n) store_first(p + i, load_first(buffer + i, int(n - i)), int(n - i));
    }
};
template <>
struct TileOut<float> {
    float* open(float* p) { return p; }
    void close(float*, int64_t) {}
};
template <>
struct TileOut<double> {
    double* open(double* p) { return p; }
    void close(double*, int64_t) {}
};

template <typename S>
struct ComputeType {
    using type = float;
};
template <>
struct ComputeType<double> {
    using type = double;
};

template <Form F, bool Positive, bool PerEntry, typename S>
void forward_rows(const S* u, int64_t u_stride, const void* theta_data, double sigma, S* out,
                  int64_t out_stride, int64_t p, int64_t row_begin, int64_t row_end) {
    using T = typename ComputeType<S>::type;
    const T* theta = static_cast<const T*>(theta_data);
    const Ramp<T> ramp(sigma);
    TileIn<S> in;
    TileOut<S> result;
    for (int64_t r = row_begin; r < row_end; ++r) {
        for (int64_t j = 0; j < p; j += kTile) {
            const int64_t n = smaller(kTile, p - j);
            const T* x = in.open(u + r * u_stride + j, n);
            T* y = result.open(out + r * out_stride + j);
            const T* t = PerEntry ? theta + j : theta;
            const T t0 = t[0];
            // x and y are one array in place, otherwise apart: no element depends on another.
#pragma GCC ivdep
            for (int64_t i = 0; i < n; ++i)
                y[i] = shrink<F, Positive>(x[i], PerEntry ? t[i] : t0, ramp);
            result.close(out + r * out_stride + j, n);
        }
    }
}

template <Form C, Form E, bool Positive, bool PerEntry, typename S>
void backward_blocks(const S* grad_out, int64_t grad_out_stride, const S* u, int64_t u_stride,
                     const void* theta_data, double sigma, S* grad_u, int64_t rows, int64_t p,
                     int64_t block_begin, int64_t block_end, double* partial) {
    using T = typename ComputeType<S>::type;
    const T* theta = static_cast<const T*>(theta_data);
    const Ramp<T> ramp(sigma);
    TileIn<S> in_u, in_g;
    TileOut<S> result;
    T unwanted[kTile];
    for (int64_t b = block_begin; b < block_end; ++b) {
        const int64_t first_row = b * kThresholdBlockRows;
        const int64_t last_row = smaller(rows, first_row + kThresholdBlockRows);
        double block_sum = 0;
        for (int64_t j = 0; j < p; j += kTile) {
            const int64_t n = smaller(kTile, p - j);
            const T* t = PerEntry ? theta + j : theta;
            const T t0 = t[0];
            T sum[kTile] = {};
            for (int64_t r = first_row; r < last_row; ++r) {
                const T* x = in_u.open(u + r * u_stride + j, n);
                const T* g = in_g.open(grad_out + r * grad_out_stride + j, n);
                T* y = grad_u ? result.open(grad_u + r * p + j) : unwanted;
#pragma GCC ivdep
                for (int64_t i = 0; i < n; ++i) {
                    T c, e;
                    coefficients<C, E, Positive>(x[i], PerEntry ? t[i] : t0, ramp, c, e);
                    const T gi = g[i];
                    y[i] = c * gi;
                    sum[i] += e * gi;
                }
                if (grad_u) result.close(grad_u + r * p + j, n);
            }
            if (!partial) continue;
            if (PerEntry) {
                for (int64_t i = 0; i < n; ++i) partial[b * p + j + i] = double(sum[i]);
            } else {
                for (int64_t i = 0; i < n; ++i) block_sum += double(sum[i]);
            }
        }
        if (!PerEntry && partial) partial[b] = block_sum;
    }
}

/// By positive, then whether theta is per entry.
template <Form F, typename S>
constexpr auto forward_rows_of(bool positive, bool per_entry) {
    constexpr decltype(&forward_rows<F, true, true, S>) table[2][2] = {
        {forward_rows<F, false, false, S>, forward_rows<F, false, true, S>},
        {forward_rows<F, true, false, S>, forward_rows<F, true, true, S>}};
    return table[positive][per_entry];
}

template <typename S>
void forward_any(Threshold h, const void* u, int64_t u_stride, const void* theta, bool per_entry,
                 double sigma, void* out, int64_t out_stride, int64_t p, int64_t row_begin,
                 int64_t row_end) {
    const auto of = h.kind == ThresholdKind::soft                ? forward_rows_of<Form::soft, S>
                    : h.kind == ThresholdKind::helu && sigma > 0 ? forward_rows_of<Form::helu, S>
                                                                 : forward_rows_of<Form::hard, S>;
    of(h.positive, per_entry)(static_cast<const S*>(u), u_stride, theta, sigma,
                              static_cast<S*>(out), out_stride, p, row_begin, row_end);
}

template <Form C, Form E, typename S>
constexpr auto backward_blocks_of(bool positive, bool per_entry) {
    constexpr decltype(&backward_blocks<C, E, true, true, S>) table[2][2] = {
        {backward_blocks<C, E, false, false, S>, backward_blocks<C, E, false, true, S>},
        {backward_blocks<C, E, true, false, S>, backward_blocks<C, E, true, true, S>}};
    return table[positive][per_entry];
}

template <typename S>
void backward_any(Threshold h, const void* grad_out, int64_t grad_out_stride, const void* u,
                  int64_t u_stride, const void* theta, bool per_entry, double sigma, void* grad_u,
                  int64_t rows, int64_t p, int64_t block_begin, int64_t block_end,
                  void* workspace) {
    constexpr Form hard = Form::hard, soft = Form::soft, helu = Form::helu;
    auto of = backward_blocks_of<hard, hard, S>;
    if (h.kind == ThresholdKind::soft)
        of = backward_blocks_of<soft, soft, S>;
    else if (sigma > 0 && (h.kind == ThresholdKind::helu || h.kind == ThresholdKind::ste))
        of = backward_blocks_of<helu, helu, S>;
    else if (sigma > 0 && h.kind == ThresholdKind::ste_theta)
        of = backward_blocks_of<hard, helu, S>;
    of(h.positive, per_entry)(static_cast<const S*>(grad_out), grad_out_stride,
                              static_cast<const S*>(u), u_stride, theta, sigma,
                              static_cast<S*>(grad_u), rows, p, block_begin, block_end,
                              static_cast<double*>(workspace));
}

void threshold(DType dtype, Threshold kind, const void* u, int64_t u_stride, const void* theta,
               bool theta_per_entry, double sigma, void* out, int64_t out_stride, int64_t p,
               int64_t row_begin, int64_t row_end) {
    const auto run = dtype == DType::f32   ? forward_any<float>
                     : dtype == DType::f64 ? forward_any<double>
                     : dtype == DType::f16 ? forward_any<half>
                                           : forward_any<bfloat16>;
    run(kind, u, u_stride, theta, theta_per_entry, sigma, out, out_stride, p, row_begin, row_end);
}

void threshold_backward(DType dtype, Threshold kind, const void* grad_out, int64_t grad_out_stride,
                        const void* u, int64_t u_stride, const void* theta, bool theta_per_entry,
                        double sigma, void* grad_u, int64_t rows, int64_t p, int64_t block_begin,
                        int64_t block_end, void* workspace) {
    const auto run = dtype == DType::f32   ? backward_any<float>
                     : dtype == DType::f64 ? backward_any<double>
                     : dtype == DType::f16 ? backward_any<half>
                                           : backward_any<bfloat16>;
    run(kind, grad_out, grad_out_stride, u, u_stride, theta, theta_per_entry, sigma, grad_u, rows,
        p, block_begin, block_end, workspace);
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
