// The kernel of least_squares.h.
#include <climits>
#include <cmath>

#include "element.cuh"
#include "least_squares.h"

namespace deepl0::cuda {

namespace {

/// A row of L a thread, the right side's among them.
constexpr int kThreads = int((kMostPlaces + 1 + 31) / 32 * 32), kWarps = kThreads / 32;

/// The largest distance, at which row, and whose place that is: of equal ones the lowest. NaN wins
/// no comparison.
struct Farthest {
    double distance;
    int place, row;

    __device__ void see(const Farthest& other) {
        if (other.distance > distance || (other.distance == distance && other.place < place))
            *this = other;
    }
    __device__ Farthest of_warp() const {
        Farthest most = *this;
#pragma unroll
        for (int d = 16; d > 0; d /= 2)
            most.see({__shfl_xor_sync(kAllLanes, most.distance, d),
                      __shfl_xor_sync(kAllLanes, most.place, d),
                      __shfl_xor_sync(kAllLanes, most.row, d)});
        return most;
    }
};

/// The system of n atoms, in shared memory.
struct System {
    double* lower;  // rows of 1, 2, .. n + 1 entries: of G, and behind the last column of L, of L
    double* distance;  // [n], squared, from the span of the atoms so far
    double* inverse;   // [n], reciprocals of the roots of L
    int* atom;         // [n], and whose place in the support that is
    int* place;

    __device__ System(double* memory, int s)
        : lower(memory),
          distance(lower + (s + 1) * (s + 2) / 2),
          inverse(distance + s),
          atom(reinterpret_cast<int*>(inverse + s)),
          place(atom + s) {}

    __device__ double* row(int i) const { return lower + i * (i + 1) / 2; }

    /// The atoms of a support without the places that have none, in order. One warp.
    __device__ int take(const int64_t* support, int s, int64_t p) const {
        int n = 0;
        for (int first = 0; first < s; first += 32) {
            const int i = first + lane_id();
            const int64_t index = i < s ? support[i] : -1;
            if (index < -1 || index >= p) __trap();
            const unsigned there = __ballot_sync(kAllLanes, index >= 0);
            if (index >= 0) {
                const int to = n + __popc(there & lanes_below());
                atom[to] = int(index);
                place[to] = i;
            }
            n += __popc(there);
        }
        return n;
    }

    /// Rows j + 1 to n of column j; entry(i) is that of G, or of the right side. The reciprocal of
    /// the next root is made as well. A barrier must lie before and behind.
    template <class Entry>
    __device__ void column(int j, int n, Entry entry) const {
        const double* other = row(j);
        const double scale = inverse[j];
        for (int i = j + 1 + int(threadIdx.x); i <= n; i += int(blockDim.x)) {
            double* own = row(i);
            double sum = entry(i);
#pragma unroll 4
            for (int k = 0; k < j; ++k) sum = fma(-own[k], other[k], sum);
            const double value = sum * scale;
            own[j] = value;
            if (i == n) continue;
            const double left = fma(-value, value, distance[i]);
            distance[i] = left;
            if (i == j + 1) inverse[i] = rsqrt(left);
        }
    }

    /// The rows change places; k entries of each are of L.
    __device__ void exchange(int i, int j, int k) const {
        const int thread = int(threadIdx.x);
        for (int c = thread; c < k; c += int(blockDim.x)) {
            const double held = row(i)[c];
            row(i)[c] = row(j)[c];
            row(j)[c] = held;
        }
        if (thread != 0) return;
        const double far = distance[j];
        distance[j] = distance[i];
        distance[i] = far;
        const int which = atom[j], whose = place[j];
        atom[j] = atom[i];
        place[j] = place[i];
        atom[i] = which;
        place[i] = whose;
        inverse[i] = rsqrt(far);
    }

    /// z of the first `count` rows, from L' z = y, y their row n. One warp.
    __device__ void substitute_back(int count, int n, double* z) const {
        double* y = row(n);
        for (int k = count - 1; k >= 0; --k) {
            const double value = y[k] * inverse[k];
            const double* l = row(k);
            if (lane_id() == 0) z[place[k]] = value;
            for (int i = lane_id(); i < k; i += 32) y[i] = fma(-l[i], value, y[i]);
            __syncwarp();
        }
    }
};

}  // namespace

__global__ void __launch_bounds__(kThreads)
    least_squares_kernel(const double* gram, int64_t ld, int64_t p, double floor,
                         const double* right, int64_t right_stride, const int64_t* support,
                         int64_t support_stride, int s, double* z) {
    extern __shared__ double2 memory[];
    __shared__ Farthest told[kWarps];
    __shared__ int atoms;
    const System f(reinterpret_cast<double*>(memory), s);
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    const int64_t number = blockIdx.x;
    right += number * right_stride;
    z += number * s;
    for (int i = thread; i < s; i += threads) z[i] = 0;
    if (warp_id() == 0) {
        const int n = f.take(support + number * support_stride, s, p);
        if (thread == 0) atoms = n;
    }
    __syncthreads();
    const int n = atoms;
    if (n == 0) return;
    const auto of_gram = [&](int i, int j) { return gram[f.atom[i] * ld + f.atom[j]]; };

    for (int i = warp_id(); i <= n; i += threads / 32)
        for (int j = lane_id(); j <= min(i, n - 1); j += 32)
            f.row(i)[j] = i < n ? of_gram(i, j) : right[f.place[j]];
    for (int i = thread; i < n; i += threads) f.distance[i] = of_gram(i, i);
    if (thread == 0) f.inverse[0] = rsqrt(of_gram(0, 0));
    __syncthreads();
    int count = 0;
    while (count < n && f.distance[count] > floor) {
        f.column(count, n, [&](int i) { return f.row(i)[count]; });
        __syncthreads();
        ++count;
    }

    if (count < n) {
        __syncthreads();  // all have left the loop
        for (int i = thread; i < n; i += threads) f.distance[i] = of_gram(i, i);
        __syncthreads();
        for (count = 0; count < n; ++count) {
            Farthest most{-INFINITY, INT_MAX, 0};
            for (int i = count + thread; i < n; i += threads)
                most.see({f.distance[i], f.place[i], i});
            most = most.of_warp();
            if (lane_id() == 0) told[warp_id()] = most;
            __syncthreads();
            most = told[0];
            for (int w = 1; w < threads / 32; ++w) most.see(told[w]);
            if (!(most.distance > floor)) break;
            f.exchange(count, most.row, count);
            __syncthreads();
            f.column(count, n,
                     [&](int i) { return i < n ? of_gram(count, i) : right[f.place[count]]; });
            __syncthreads();
        }
    }
    if (warp_id() == 0) f.substitute_back(count, n, z);
}

size_t least_squares_shared_bytes(int64_t s) {
    return 8 * size_t((s + 1) * (s + 2) / 2 + 2 * s) + 4 * size_t(2 * s);
}

void least_squares(const LeastSquares& a) {
    if (a.rows == 0 || a.s == 0) return;
    const char* name = "least_squares_kernel";
    const size_t shared = least_squares_shared_bytes(a.s);
    allow_shared(least_squares_kernel, shared, sizeof(Farthest) * kWarps + sizeof(int), name);
    const unsigned threads = unsigned((a.s + 1 + 31) / 32 * 32);
    least_squares_kernel<<<grid_size(a.rows, name), threads, shared, a.stream>>>(
        a.gram, a.ld, a.p, a.floor, a.right, a.right_stride, a.support, a.support_stride, a.s, a.z);
    launched(name);
}

}  // namespace deepl0::cuda
