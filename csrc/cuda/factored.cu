// The kernels of factored.h: a number a thread, and sums of blocks.
#include "element.cuh"
#include "factored.h"

namespace deepl0::cuda {

constexpr int kThreads = 256;
constexpr int kMostBlocks = int(kDotBytes / 8);  // of a dot product

__device__ inline int64_t thread_at() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

template <class X>
__global__ void __launch_bounds__(kThreads)
    residual_kernel(const typename X::Bits* x, int64_t x_stride, int64_t count, int n,
                    const float* dz, const float* step, float* out) {
    const int64_t at = thread_at();
    if (at >= count) return;
    float r = X::value(x[at / n * x_stride + at % n]);
    if (dz) r -= dz[at];
    out[at] = step ? *step * r : r;
}

__global__ void __launch_bounds__(kThreads)
    back_to_residual_kernel(float* q, int64_t count, const float* step, float* total, bool add) {
    const int64_t at = thread_at();
    if (at >= count) return;
    const float dr = step ? *step * q[at] : q[at];
    q[at] = -dr;
    if (total) total[at] = add ? total[at] + dr : dr;
}

__global__ void __launch_bounds__(kThreads)
    add_common_entries_kernel(const float* values, const int64_t* indices, int m, const int64_t* at,
                              const float* z, int64_t entries, int wanted, float* dz) {
    const int64_t e = thread_at();
    if (e >= entries) return;
    const int64_t unit = at[e], row = e / wanted * m;
    // The first index that is not below the unit.
    int low = 0, high = m;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (indices[row + middle] < unit)
            low = middle + 1;
        else
            high = middle;
    }
    float sum = dz[e];
    if (low < m && indices[row + low] == unit) sum += values[row + low];
    dz[e] = z && z[e] == 0.0f ? 0.0f : sum;
}

/// The sum of what the threads of the block have, in the first of them.
__device__ inline double sum_of_block(double own) {
    __shared__ double sums[kThreads];
    sums[threadIdx.x] = own;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return sums[threadIdx.x];
}

__global__ void __launch_bounds__(kThreads)
    dot_kernel(const float* a, const float* b, int64_t count, double* partial) {
    double sum = 0.0;
    for (int64_t at = thread_at(); at < count; at += int64_t(gridDim.x) * kThreads)
        sum += double(a[at]) * double(b[at]);
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    dot_sum_kernel(const double* partial, int count, float* out) {
    double sum = 0.0;
    for (int at = int(threadIdx.x); at < count; at += kThreads) sum += partial[at];
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) *out = float(sum);
}

namespace {

unsigned blocks_of(int64_t threads, const char* name) {
    return grid_size(ceil_div(threads, kThreads), name);
}

}  // namespace

void residual(DType dtype, const void* x, int64_t x_stride, int64_t rows, int64_t n,
              const float* dz, const float* step, float* out, cudaStream_t stream) {
    const int64_t count = rows * n;
    if (count == 0) return;
    const char* name = "residual_kernel";
    const auto run = [&](auto of) {
        using X = decltype(of);
        residual_kernel<X><<<blocks_of(count, name), kThreads, 0, stream>>>(
            static_cast<const typename X::Bits*>(x), x_stride, count, int(n), dz, step, out);
        launched(name);
    };
    if (dtype == DType::f32) return run(F32());
    if (dtype == DType::f16) return run(F16());
    run(BF16());
}

void back_to_residual(float* q, int64_t count, const float* step, float* total, bool add,
                      cudaStream_t stream) {
    if (count == 0) return;
    const char* name = "back_to_residual_kernel";
    back_to_residual_kernel<<<blocks_of(count, name), kThreads, 0, stream>>>(q, count, step, total,
                                                                             add);
    launched(name);
}

void add_common_entries(const float* values, const int64_t* indices, int64_t m, const int64_t* at,
                        const float* z, int64_t rows, int64_t wanted, float* dz,
                        cudaStream_t stream) {
    const int64_t entries = rows * wanted;
    if (entries == 0) return;
    const char* name = "add_common_entries_kernel";
    add_common_entries_kernel<<<blocks_of(entries, name), kThreads, 0, stream>>>(
        values, indices, int(m), at, z, entries, int(wanted), dz);
    launched(name);
}

void dot(const float* a, const float* b, int64_t count, float* out, void* workspace,
         cudaStream_t stream) {
    auto* partial = static_cast<double*>(workspace);
    const int blocks = int(std::min<int64_t>(kMostBlocks, ceil_div(count, kThreads)));
    if (blocks > 0) {
        dot_kernel<<<blocks, kThreads, 0, stream>>>(a, b, count, partial);
        launched("dot_kernel");
    }
    dot_sum_kernel<<<1, kThreads, 0, stream>>>(partial, blocks, out);
    launched("dot_sum_kernel");
}

}  // namespace deepl0::cuda
