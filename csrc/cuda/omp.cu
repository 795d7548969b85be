// The kernel of omp.h.
#include "omp_factor.cuh"

namespace deepl0::cuda {

namespace {

/// alpha [ld] -= y v of the last of k + 1 atoms; what of it this thread sees to be the largest. A
/// thread owns its columns: alpha and the v_j, kept [m - 1, ld], need no barrier.
template <bool KEEPS_ROWS>
__device__ Peak project(const Factor& f, const float* gram, int ld, int k, float* alpha,
                        float* kept) {
    using Four = Pack<float, 4>;
    const auto load = [](const float* at) { return *reinterpret_cast<const Four*>(at); };
    const float* last = gram + f.atom[k] * ld;
    const float y = f.y[k], scale = f.row(k)[k];
    Peak peak = Peak::none();
    for (int c = int(threadIdx.x) * 4; c < ld; c += int(blockDim.x) * 4) {
        Four v = load(last + c);
#pragma unroll 4
        for (int j = 0; j < k; ++j) {
            const Four before = load(KEEPS_ROWS ? kept + j * ld + c : gram + f.atom[j] * ld + c);
            const float factor = KEEPS_ROWS ? f.w[j] : f.cross[j];
#pragma unroll
            for (int i = 0; i < 4; ++i) v.at[i] = fmaf(-factor, before.at[i], v.at[i]);
        }
        Four now = load(alpha + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v.at[i] *= scale;
            now.at[i] = fmaf(-y, v.at[i], now.at[i]);
            peak.see(fabsf(now.at[i]), c + i);
        }
        *reinterpret_cast<Four*>(alpha + c) = now;
        if (KEEPS_ROWS) *reinterpret_cast<Four*>(kept + k * ld + c) = v;
    }
    __syncwarp();  // lanes of no column wait for the others
    return peak;
}

}  // namespace

template <bool KEEPS_ROWS>
__global__ void __launch_bounds__(kOmpThreads)
    omp_kernel(const float* x, int64_t x_stride, const float* b, const float* gram, int n, int p,
               int ld, int m, float tol, float* values, int64_t* indices, int64_t* count,
               float* objective, int64_t objective_stride) {
    extern __shared__ float4 memory[];
    __shared__ Told told;
    auto* alpha = reinterpret_cast<float*>(memory);  // NaN of chosen atoms and of the padding
    float* kept = alpha + ld;
    const Factor f(kept + (KEEPS_ROWS ? (m - 1) * ld : 0), m);
    const int thread = int(threadIdx.x);
    const int64_t number = blockIdx.x;
    objective += number;
    b += number * ld;

    const float squared = told.squares(x + number * x_stride, n), floor = tol * sqrtf(squared);
    Peak peak = Peak::none();
    for (int c = thread; c < ld; c += int(blockDim.x)) {
        alpha[c] = c < p ? b[c] : __int_as_float(kNanF32);
        peak.see(fabsf(alpha[c]), c);
    }
    if (thread == 0) objective[0] = omp_value(squared, 0);
    int k = 0;
    float taken = 0;  // ||y||^2
    for (;;) {
        peak = told.largest(peak);
        if (!(peak.size > floor)) break;
        const float correlation = alpha[peak.at];
        const float distance = f.distance(gram + peak.at * ld, k);
        if (!(distance > kLeastPivot)) break;
        const float root = sqrtf(distance), y = correlation / root;
        f.append(k, peak.at, root, y);
        taken = fmaf(y, y, taken);
        if (thread == 0) {
            alpha[peak.at] = __int_as_float(kNanF32);
            objective[(k + 1) * objective_stride] = omp_value(squared, taken);
        }
        if (++k == m) break;
        __syncthreads();
        peak = project<KEEPS_ROWS>(f, gram, ld, k - 1, alpha, kept);
    }
    __syncthreads();
    f.write(k, m, values + number * m, indices + number * m);
    if (thread == 0) {
        count[number] = k;
        for (int i = k + 1; i <= m; ++i)
            objective[i * objective_stride] = omp_value(squared, taken);
    }
}

namespace {

template <bool KEEPS_ROWS>
void launch(const Omp& a) {
    const char* name = "omp_kernel";
    const auto kernel = omp_kernel<KEEPS_ROWS>;
    const size_t shared = omp_shared_bytes(a.ld, a.m, KEEPS_ROWS);
    allow_shared(kernel, shared, sizeof(Told), name);
    kernel<<<grid_size(a.rows, name), omp_threads(a.ld), shared, a.stream>>>(
        a.x, a.x_stride, a.alpha, a.gram, a.n, a.p, a.ld, a.m, a.tol, a.values, a.indices, a.count,
        a.objective, a.objective_stride);
    launched(name);
}

}  // namespace

size_t omp_shared_bytes(int64_t ld, int64_t m, bool keeps_rows) {
    return 4 * size_t(ld * (keeps_rows ? m : 1) + m * (m + 1) / 2 + kOmpArrays * m);
}

bool omp_keeps_rows(int64_t ld, int64_t m, const Device& device) {
    const size_t shared = omp_shared_bytes(ld, m, true) + sizeof(Told) + 1024;  // the system's own
    return 3 * shared <= size_t(device.shared_bytes);
}

void omp(const Omp& a) {
    if (a.rows == 0) return;
    omp_keeps_rows(a.ld, a.m, current_device()) ? launch<true>(a) : launch<false>(a);
}

}  // namespace deepl0::cuda
