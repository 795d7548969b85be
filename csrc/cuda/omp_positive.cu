// Orthogonal matching pursuit of nonnegative codes: the kernel of omp_positive in omp.h.
#include "omp_factor.cuh"

namespace deepl0::cuda {

namespace {

constexpr int kSlotArrays = 5;  // of m entries in a Fit, beside those of its factor

/// What a chosen atom is: in the factor; out of it, and may come back; out of it for good.
enum State : int { kInside, kWaiting, kBarred };

/// Nonnegative least squares on the chosen atoms of a signal, by the active set of Lawson and
/// Hanson 1974. An atom has a slot, in the order of choice; the k atoms of the factor have
/// positions. All threads call, and learn the same.
struct Fit {
    Factor f;
    const float* gram;  // D'D [p, ld]
    float* b;           // D'x [ld]; NaN of chosen atoms
    int ld, m;
    float* a;      // [m]: the code by slot, 0 outside of the factor
    float* start;  // [m]: the atom's entry of D'x
    int* state;    // [m]
    int* chosen;   // [m]: atoms by slot
    int* slot;     // [m]: of a position
    int count = 0, k = 0;

    __device__ Fit(float* memory, const float* gram, float* b, int ld, int m)
        : f(memory, m),
          gram(gram),
          b(b),
          ld(ld),
          m(m),
          a(reinterpret_cast<float*>(f.end(m))),
          start(a + m),
          state(reinterpret_cast<int*>(start + m)),
          chosen(state + m),
          slot(chosen + m) {}

    /// Whether an atom, of slot s, is far enough from the span of those in the factor; it is one of
    /// them then, with that coefficient. Begins after a barrier, ends with one.
    __device__ bool add(int s, int atom, float correlation, float value) {
        const float distance = f.distance(gram + atom * ld, k);
        const bool far = distance > kLeastPivot;
        if (far) {
            const float root = sqrtf(distance), y = (correlation - Factor::dot(f.w, f.y, k)) / root;
            f.append(k, atom, root, y);
        }
        if (threadIdx.x == 0) {
            chosen[s] = atom;
            start[s] = correlation;
            b[atom] = __int_as_float(kNanF32);
            a[s] = far ? value : 0.0f;
            state[s] = far ? kInside : kBarred;
            if (far) slot[k] = s;
        }
        k += far;
        __syncthreads();
        return far;
    }

    __device__ void again(int s, float value) { add(s, chosen[s], start[s], value); }

    /// The share of the way from a to z at which the coefficient becomes 0.
    static __device__ float length(float a, float z) { return a > 0 ? a / (a - z) : 0.0f; }

    /// Moves a towards z, least squares on the factor (in cross, by position), until the first
    /// coefficients are 0, and takes those out; false where all are positive and a = z, behind
    /// which there is no barrier. Begins after one.
    __device__ bool shorten() {
        const int j = int(threadIdx.x), own = j < k ? slot[j] : 0;  // k <= m <= blockDim.x
        const float z = j < k ? f.column_sum(j, k, f.y) : 1.0f, before = j < k ? a[own] : 0.0f;
        const bool low = !(z > 0);
        if (j < k) {
            f.cross[j] = z;
            f.w[j] = low ? length(before, z) : FLT_MAX;
        }
        if (!__syncthreads_or(low)) {
            if (j < k) a[own] = z;
            return false;
        }
        int key = __float_as_int(1.0f);  // every warp for itself; NaN is above
        for (int i = lane_id(); i < k; i += 32) key = min(key, __float_as_int(f.w[i]));
        const float step = __int_as_float(__reduce_min_sync(kAllLanes, key));
        const bool leaves = low && !(f.w[j] > step);
        if (j < k) {
            a[own] = leaves ? 0.0f : fmaf(step, z - before, before);
            if (leaves) state[own] = before > 0 ? kWaiting : kBarred;
        }
        // What has only just come in and leaves at once was brought by rounding.
        __syncthreads();
        int stay = 0, first = k;  // of the positions before this one; the first that is left
        for (int i = 0; i < k; ++i) {
            const bool gone = state[slot[i]] != kInside;
            if (gone) first = min(first, i);
            if (i < j) stay += !gone;
        }
        const int all = __syncthreads_count(j < k && !leaves);
        if (j < k && !leaves) slot[stay] = own;
        __syncthreads();
        // The factor from there on anew; an atom whose distance is lost to rounding is barred.
        k = first;
        for (int i = first; i < all; ++i) again(slot[i], a[slot[i]]);
        return true;
    }

    /// The nonnegative least squares on all chosen atoms; z is in cross. Begins after a barrier,
    /// ends with one.
    __device__ void settle(Told& told, float floor) {
        for (int more = 2 * m;;) {
            if (shorten()) continue;
            const int s = int(threadIdx.x);
            Peak peak = Peak::none();
            if (s < count && state[s] == kWaiting) {
                const float* g = gram + chosen[s] * ld;
                float correlation = start[s];
                for (int i = 0; i < k; ++i)
                    correlation = fmaf(-f.cross[i], g[f.atom[i]], correlation);
                peak.see(correlation, s);
            }
            __syncwarp();
            peak = told.largest(peak);
            if (!(peak.size > floor)) break;
            if (more-- > 0) {
                again(peak.at, 0);
            } else {
                if (threadIdx.x == 0) state[peak.at] = kBarred;
                __syncthreads();
            }
        }
        __syncthreads();
    }
};

/// The largest entry of alpha = b - G z at atoms that are not chosen, of this thread's columns.
__device__ Peak largest_left(const Fit& fit, int p) {
    using Four = Pack<float, 4>;
    const auto load = [](const float* at) { return *reinterpret_cast<const Four*>(at); };
    Peak peak = Peak::none();
    for (int c = int(threadIdx.x) * 4; c < fit.ld; c += int(blockDim.x) * 4) {
        Four alpha = load(fit.b + c);
#pragma unroll 4
        for (int j = 0; j < fit.k; ++j) {
            const Four g = load(fit.gram + fit.f.atom[j] * fit.ld + c);
#pragma unroll
            for (int i = 0; i < 4; ++i) alpha.at[i] = fmaf(-fit.f.cross[j], g.at[i], alpha.at[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (c + i < p) peak.see(alpha.at[i], c + i);
    }
    __syncwarp();
    return peak;
}

}  // namespace

__global__ void __launch_bounds__(kOmpThreads, 4)
    omp_positive_kernel(const float* x, int64_t x_stride, float* b, const float* gram, int n, int p,
                        int ld, int m, float tol, float* values, int64_t* indices, int64_t* count,
                        float* objective, int64_t objective_stride) {
    extern __shared__ float memory_of_fit[];
    __shared__ Told told;
    const int64_t number = blockIdx.x;
    objective += number;
    const float squared = told.squares(x + number * x_stride, n), floor = tol * sqrtf(squared);
    Fit fit(memory_of_fit, gram, b + number * ld, ld, m);
    float value = omp_value(squared, 0);
    if (threadIdx.x == 0) objective[0] = value;
    while (fit.count < m) {
        const Peak peak = told.largest(largest_left(fit, p));
        if (!(peak.size > floor) || !fit.add(fit.count, peak.at, fit.b[peak.at], 0)) break;
        ++fit.count;
        fit.settle(told, floor);
        value = omp_value(squared, Factor::dot(fit.f.y, fit.f.y, fit.k));
        if (threadIdx.x == 0) objective[fit.count * objective_stride] = value;
    }
    fit.f.write(fit.k, m, values + number * m, indices + number * m);
    if (threadIdx.x == 0) {
        count[number] = fit.count;
        for (int i = fit.count + 1; i <= m; ++i) objective[i * objective_stride] = value;
    }
}

void omp_positive(const Omp& a) {
    if (a.rows == 0) return;
    const char* name = "omp_positive_kernel";
    const size_t shared = 4 * size_t(a.m * (a.m + 1) / 2 + (kOmpArrays + kSlotArrays) * a.m);
    allow_shared(omp_positive_kernel, shared, sizeof(Told), name);
    omp_positive_kernel<<<grid_size(a.rows, name), omp_threads(a.ld), shared, a.stream>>>(
        a.x, a.x_stride, a.alpha, a.gram, a.n, a.p, a.ld, a.m, a.tol, a.values, a.indices, a.count,
        a.objective, a.objective_stride);
    launched(name);
}

}  // namespace deepl0::cuda
