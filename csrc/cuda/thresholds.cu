// The kernels of thresholds.h: a warp takes 128 columns of every fourth row of its block's.
#include "thresholds.cuh"

namespace deepl0::cuda {

constexpr int kWarps = 4;
constexpr int kPack = 4;
constexpr int kTileColumns = 32 * kPack;
constexpr int kTileRows = 32;
constexpr int kSummedRows = 64;

template <class In, class Out>
__global__ void __launch_bounds__(32 * kWarps)
    threshold_kernel(const typename In::Bits* u, int64_t u_stride, int64_t rows, int p, int tiles,
                     ThresholdKind kind, bool positive, float sigma, const float* theta,
                     int theta_step, typename Out::Bits* out) {
    const Function h{kind, positive, sigma};
    using OutBits = typename Out::Bits;
    const int at = int(blockIdx.x % tiles) * kTileColumns + lane_id() * kPack;
    const int64_t first = int64_t(blockIdx.x / tiles) * kTileRows;
    const int64_t end = min(first + kTileRows, rows);
    float of[kPack];
    load_theta(theta, theta_step, at, p, of);
    const bool aligned = rows_aligned<typename In::Bits, kPack>(u, u_stride);
    const bool aligned_out = rows_aligned<OutBits, kPack>(out, p);
    for (int64_t row = first + warp_id(); row < end; row += kWarps) {
        const auto in = load_pack<kPack>(u + row * u_stride, at, p, aligned);
        Pack<OutBits, kPack> pack;
#pragma unroll
        for (int v = 0; v < kPack; ++v)
            pack.at[v] = Out::rounded(h.value(In::value(in.at[v]), of[v]));
        store_pack<kPack>(out + row * p, at, p, aligned_out, pack);
    }
}

template <class Out>
__global__ void __launch_bounds__(32 * kWarps)
    threshold_of_sum_kernel(float* u, const float* wx, bool keep, int64_t rows, int p, int tiles,
                            ThresholdKind kind, bool positive, float sigma, const float* theta,
                            int theta_step, typename Out::Bits* out) {
    const Function h{kind, positive, sigma};
    const int at = int(blockIdx.x % tiles) * kTileColumns + lane_id() * kPack;
    const int64_t first = int64_t(blockIdx.x / tiles) * kTileRows;
    const int64_t end = min(first + kTileRows, rows);
    float of[kPack];
    load_theta(theta, theta_step, at, p, of);
    const bool aligned = rows_aligned<float, kPack>(u, p);
    const bool aligned_wx = rows_aligned<float, kPack>(wx, p);
    const bool aligned_out = rows_aligned<typename Out::Bits, kPack>(out, p);
    for (int64_t row = first + warp_id(); row < end; row += kWarps) {
        auto sum = load_pack<kPack>(u + row * p, at, p, aligned);
        const auto add = load_pack<kPack>(wx + row * p, at, p, aligned_wx);
        Pack<typename Out::Bits, kPack> pack;
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
            sum.at[v] += add.at[v];
            pack.at[v] = Out::rounded(h.value(sum.at[v], of[v]));
        }
        if (keep) store_pack<kPack>(u + row * p, at, p, aligned, sum);
        store_pack<kPack>(out + row * p, at, p, aligned_out, pack);
    }
}

/// Partial sums are those of a block's rows, its warps' in their order.
template <class Grad, class U, class Out>
__global__ void __launch_bounds__(32 * kWarps)
    threshold_backward_kernel(const typename Grad::Bits* grad, int64_t grad_stride,
                              const typename U::Bits* u, int64_t u_stride, int64_t rows, int p,
                              int tiles, ThresholdKind kind, bool positive, float sigma,
                              const float* theta, int theta_step, typename Out::Bits* grad_u,
                              float* total, bool add_total, float* partials, bool add_partials) {
    const Function h{kind, positive, sigma};
    using Bits = typename U::Bits;
    using OutBits = typename Out::Bits;
    __shared__ float sums[kWarps][kTileColumns];
    const int at = int(blockIdx.x % tiles) * kTileColumns + lane_id() * kPack;
    const int64_t chunk = blockIdx.x / tiles, first = chunk * kTileRows;
    const int64_t end = min(first + kTileRows, rows);
    float of[kPack], sum[kPack] = {};
    load_theta(theta, theta_step, at, p, of);
    const bool aligned = rows_aligned<Bits, kPack>(u, u_stride);
    const bool aligned_grad = rows_aligned<typename Grad::Bits, kPack>(grad, grad_stride);
    const bool aligned_out = rows_aligned<OutBits, kPack>(grad_u, p);
    const bool aligned_total = rows_aligned<float, kPack>(total, p);
    for (int64_t row = first + warp_id(); row < end; row += kWarps) {
        const auto in = load_pack<kPack>(u + row * u_stride, at, p, aligned);
        const auto by = load_pack<kPack>(grad + row * grad_stride, at, p, aligned_grad);
        Pack<OutBits, kPack> out;
        Pack<float, kPack> all{};
        if (total && add_total) all = load_pack<kPack>(total + row * p, at, p, aligned_total);
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
            float of_u, of_theta;
            h.slopes(U::value(in.at[v]), of[v], of_u, of_theta);
            const float g = Grad::value(by.at[v]);
            out.at[v] = Out::rounded(g * of_u);
            all.at[v] += g * of_u;
            sum[v] = fmaf(g, of_theta, sum[v]);
        }
        if (grad_u) store_pack<kPack>(grad_u + row * p, at, p, aligned_out, out);
        if (total) store_pack<kPack>(total + row * p, at, p, aligned_total, all);
    }
    if (!partials) return;
#pragma unroll
    for (int v = 0; v < kPack; ++v) sums[warp_id()][lane_id() * kPack + v] = sum[v];
    __syncthreads();
    const int column = int(blockIdx.x % tiles) * kTileColumns + int(threadIdx.x);
    if (column >= p) return;
    float* out = partials + chunk * p + column;
    float value = add_partials ? *out : 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += sums[w][threadIdx.x];
    *out = value;
}

template <class Out>
__global__ void __launch_bounds__(32 * kWarps)
    column_sums_kernel(const float* in, int64_t rows, int p, int tiles, typename Out::Bits* out) {
    __shared__ float sums[kWarps][kTileColumns];
    const int at = int(blockIdx.x % tiles) * kTileColumns + lane_id() * kPack;
    const int64_t chunk = blockIdx.x / tiles, first = chunk * kSummedRows;
    const int64_t end = min(first + kSummedRows, rows);
    const bool aligned = rows_aligned<float, kPack>(in, p);
    float sum[kPack] = {};
    for (int64_t row = first + warp_id(); row < end; row += kWarps) {
        const auto pack = load_pack<kPack>(in + row * p, at, p, aligned);
#pragma unroll
        for (int v = 0; v < kPack; ++v) sum[v] += pack.at[v];
    }
#pragma unroll
    for (int v = 0; v < kPack; ++v) sums[warp_id()][lane_id() * kPack + v] = sum[v];
    __syncthreads();
    const int column = int(blockIdx.x % tiles) * kTileColumns + int(threadIdx.x);
    if (column >= p) return;
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += sums[w][threadIdx.x];
    out[chunk * p + column] = Out::rounded(value);
}

namespace {

/// Calls run with the element type.
template <class Run>
void by_type(DType dtype, Run run) {
    if (dtype == DType::f32) return run(F32());
    if (dtype == DType::f16) return run(F16());
    return run(BF16());
}

template <class A, class B>
constexpr bool same = std::is_same_v<A, B>;

int tiles_of(int64_t p) { return int(ceil_div(p, kTileColumns)); }

}  // namespace

void threshold(const Threshold& h, DType u_dtype, const void* u, int64_t u_stride, int64_t rows,
               int64_t p, DType out_dtype, void* out, cudaStream_t stream) {
    if (rows == 0 || p == 0) return;
    const char* name = "threshold_kernel";
    const int tiles = tiles_of(p);
    const unsigned grid = grid_size(ceil_div(rows, kTileRows) * tiles, name);
    by_type(u_dtype, [&](auto in) {
        by_type(out_dtype, [&](auto to) {
            using In = decltype(in);
            using Out = decltype(to);
            if constexpr (same<In, F32> || same<In, Out>) {
                threshold_kernel<In, Out><<<grid, 32 * kWarps, 0, stream>>>(
                    static_cast<const typename In::Bits*>(u), u_stride, rows, int(p), tiles, h.kind,
                    h.positive, h.sigma, h.theta, h.theta_step,
                    static_cast<typename Out::Bits*>(out));
                launched(name);
            }
        });
    });
}

void threshold_of_sum(const Threshold& h, float* u, const float* wx, bool keep, int64_t rows,
                      int64_t p, DType out_dtype, void* out, cudaStream_t stream) {
    if (rows == 0 || p == 0) return;
    const char* name = "threshold_of_sum_kernel";
    const int tiles = tiles_of(p);
    const unsigned grid = grid_size(ceil_div(rows, kTileRows) * tiles, name);
    by_type(out_dtype, [&](auto to) {
        using Out = decltype(to);
        if constexpr (!same<Out, F32>) {
            threshold_of_sum_kernel<Out><<<grid, 32 * kWarps, 0, stream>>>(
                u, wx, keep, rows, int(p), tiles, h.kind, h.positive, h.sigma, h.theta,
                h.theta_step, static_cast<typename Out::Bits*>(out));
            launched(name);
        }
    });
}

int64_t threshold_partials(int64_t rows, int64_t p) { return ceil_div(rows, kTileRows) * p; }

void threshold_backward(const Threshold& h, const ThresholdBackward& a, cudaStream_t stream) {
    if (a.rows == 0 || a.p == 0) return;
    const char* name = "threshold_backward_kernel";
    const int tiles = tiles_of(a.p);
    const unsigned grid = grid_size(ceil_div(a.rows, kTileRows) * tiles, name);
    const auto run = [&](auto of_grad, auto of_u, auto to) {
        using Grad = decltype(of_grad);
        using U = decltype(of_u);
        using Out = decltype(to);
        threshold_backward_kernel<Grad, U, Out><<<grid, 32 * kWarps, 0, stream>>>(
            static_cast<const typename Grad::Bits*>(a.grad), a.grad_stride,
            static_cast<const typename U::Bits*>(a.u), a.u_stride, a.rows, int(a.p), tiles, h.kind,
            h.positive, h.sigma, h.theta, h.theta_step, static_cast<typename Out::Bits*>(a.grad_u),
            a.total, a.add_total, a.partials, a.add_partials);
        launched(name);
    };
    by_type(a.grad_u_dtype, [&](auto to) {
        if (a.u_dtype != DType::f32) return run(to, to, to);
        a.grad_dtype == DType::f32 ? run(F32(), F32(), to) : run(to, F32(), to);
    });
}

int64_t column_sums_workspace(int64_t rows, int64_t p) {
    // Of the first pass and the second, which the third no longer reads beside.
    const int64_t once = ceil_div(rows, kSummedRows);
    return (once + ceil_div(once, kSummedRows)) * p;
}

void column_sums(const float* in, int64_t rows, int64_t p, DType dtype, void* out, float* workspace,
                 cudaStream_t stream) {
    if (p == 0) return;
    const char* name = "column_sums_kernel";
    const int tiles = tiles_of(p);
    float* to = workspace;
    float* other = workspace + ceil_div(rows, kSummedRows) * p;
    while (rows > kSummedRows) {
        const int64_t chunks = ceil_div(rows, kSummedRows);
        column_sums_kernel<F32><<<grid_size(chunks * tiles, name), 32 * kWarps, 0, stream>>>(
            in, rows, int(p), tiles, reinterpret_cast<uint32_t*>(to));
        launched(name);
        in = to;
        rows = chunks;
        std::swap(to, other);
    }
    by_type(dtype, [&](auto of) {
        using Out = decltype(of);
        column_sums_kernel<Out><<<grid_size(tiles, name), 32 * kWarps, 0, stream>>>(
            in, rows, int(p), tiles, static_cast<typename Out::Bits*>(out));
        launched(name);
    });
}

}  // namespace deepl0::cuda
