// Kernels test_nvcc.py compiles to PTX.
#ifdef WITH_CUB
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#endif
#include <cuda_bf16.h>
#include <cuda_pipeline.h>

extern "C" __global__ void block_sum(const float* x, float* out, int n) {
    __shared__ float part[32];
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
    for (int step = 16; step; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
#ifndef NO_BARRIER
    __syncthreads();
#endif
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
        for (int step = 16; step; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
        if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
}

extern "C" __global__ void compact(const float* x, int n, float limit, int* index, int* count) {
    __shared__ int base[8];
    int i = threadIdx.x, warp = i / 32, lane = i % 32;
    bool keep = i < n && fabsf(x[i]) >= limit;
    unsigned votes = __ballot_sync(0xffffffffu, keep);
    if (lane == 0) base[warp] = __popc(votes);
    __syncthreads();
    if (i == 0) {
        int sum = 0;
        for (int w = 0; w < blockDim.x / 32; ++w) {
            int mine = base[w];
            base[w] = sum;
            sum += mine;
        }
        *count = sum;
    }
    __syncthreads();
    if (keep) index[base[warp] + __popc(votes & ((1u << lane) - 1))] = i;
}

extern "C" __global__ void histogram(const unsigned char* x, int n, unsigned* out) {
    extern __shared__ unsigned bins[];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&bins[x[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        if (bins[i]) atomicAdd(&out[i], bins[i]);
}

#ifdef WITH_CUB
extern "C" __global__ void radix_sort(unsigned* keys, int* values) {
    using Sort = cub::BlockRadixSort<unsigned, 128, 4, int>;
    __shared__ typename Sort::TempStorage storage;
    unsigned k[4];
    int v[4];
    for (int i = 0; i < 4; ++i)
        k[i] = keys[threadIdx.x * 4 + i], v[i] = values[threadIdx.x * 4 + i];
    Sort(storage).SortDescending(k, v);
    for (int i = 0; i < 4; ++i)
        keys[threadIdx.x * 4 + i] = k[i], values[threadIdx.x * 4 + i] = v[i];
}

extern "C" __global__ void scan(const int* x, int* out, int* total) {
    using Scan = cub::BlockScan<int, 128>;
    __shared__ typename Scan::TempStorage storage;
    int v[3], sum;
    for (int i = 0; i < 3; ++i) v[i] = x[threadIdx.x * 3 + i];
    Scan(storage).ExclusiveSum(v, v, sum);
    for (int i = 0; i < 3; ++i) out[threadIdx.x * 3 + i] = v[i];
    if (threadIdx.x == 0) *total = sum;
}

extern "C" __global__ void sum_of_96(const double* x, double* out) {
    using Reduce = cub::BlockReduce<double, 96>;
    __shared__ typename Reduce::TempStorage storage;
    double sum = Reduce(storage).Sum(x[threadIdx.x]);
    if (threadIdx.x == 0) *out = sum;
}
#endif

// Double-buffered cp.async; DEPTH 0 waits for all copies, 1 leaves the newest in flight.
#ifndef DEPTH
#define DEPTH 0
#endif
extern "C" __global__ void copy_through_shared(const float4* x, float* out, int tiles) {
    __shared__ float4 tile[2][64];
    float sum = 0.f;
    __pipeline_memcpy_async(&tile[0][threadIdx.x], &x[threadIdx.x], 16);
    __pipeline_commit();
    for (int t = 0; t < tiles; ++t) {
        if (t + 1 < tiles)
            __pipeline_memcpy_async(&tile[(t + 1) % 2][threadIdx.x], &x[(t + 1) * 64 + threadIdx.x],
                                    16);
        __pipeline_commit();
        __pipeline_wait_prior(1 + DEPTH);
        __syncthreads();
        float4 v = tile[t % 2][63 - threadIdx.x];
        sum += v.x + v.y + v.z + v.w;
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}

__device__ __noinline__ float polynomial(float x, int n) {
    float r = 0;
    for (int i = 0; i < n; ++i) r = r * x + i;
    return r;
}

extern "C" __global__ void calls(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = polynomial(x[i], i % 5) + expf(x[i]) + logf(fabsf(x[i]) + 1.f) + sinf(x[i]);
}

__constant__ float powers[4] = {1.f, 2.f, 4.f, 8.f};

extern "C" __global__ void local_arrays(const int* x, float* out) {
    int i = threadIdx.x;
    float a[8];
    for (int j = 0; j < 8; ++j) a[j] = j * powers[j % 4];
    switch (x[i] & 7) {
        case 0:
            a[1] = 7;
            break;
        case 1:
            a[2] = 5;
            break;
        case 2:
            a[3] *= 2;
            break;
        case 3:
            a[0] = a[7];
            break;
        case 4:
            a[5] = a[6];
            break;
        default:
            a[4] = 0;
    }
    float sum = 0;
    for (int j = 0; j < 8; ++j) sum += a[(j * x[i]) & 7];
    out[i] = sum;
}

extern "C" __global__ void votes(const int* x, int* out) {
    int positive = __syncthreads_count(x[threadIdx.x] > 0);
    int five = __syncthreads_or(x[threadIdx.x] == 5);
    unsigned same = __match_any_sync(__activemask(), x[threadIdx.x]);
    out[threadIdx.x] = positive + 1000 * five + 10000 * __popc(same);
}

extern "C" __global__ void halves(const __nv_bfloat16* x, __nv_bfloat16* out,
                                  unsigned long long* best, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    out[i] = __hadd(__hmul(x[i], x[i]), __float2bfloat16(0.5f));
    unsigned key = __float_as_uint(fabsf(__bfloat162float(x[i])));
    atomicMax(best, (unsigned long long)key << 32 | (unsigned)(n - i));
}
