// The kernel of threshold_stage.h: a block has a tile of 128 rows by 128 units.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "mma.cuh"
#include "threshold_stage.h"
#include "thresholds.cuh"

namespace deepl0::cuda {

constexpr int kPack = 4;
/// Rows whose sums lie in shared memory at a time: those of the warps of one half.
constexpr int kHalf = Accumulators::kRows;
/// Floats from a row to the next, so that neither writing pairs nor reading packs meets a bank
/// twice.
constexpr int kSumStride = ProductTile::kColumns + 8;
static_assert(32 * kPack == ProductTile::kColumns, "a warp reads a row at once");
static_assert(kHalf * kSumStride * sizeof(float) <= sizeof(ProductTile), "in the tile's place");

/// This warp's sums to shared memory, its first row at 0.
__device__ void put_sums(const Accumulators& sum, float* sums) {
    float* to =
        sums + lane_id() / 4 * kSumStride + Accumulators::first_column() + lane_id() % 4 * 2;
#pragma unroll
    for (int i = 0; i < Accumulators::kDown; ++i) {
#pragma unroll
        for (int j = 0; j < Accumulators::kAcross; ++j) {
            const auto& at = sum.at[i][j];
            float* corner = to + 16 * i * kSumStride + 8 * j;
            *reinterpret_cast<float2*>(corner) = {at[0], at[1]};
            *reinterpret_cast<float2*>(corner + 8 * kSumStride) = {at[2], at[3]};
        }
    }
}

template <class T>
__global__ void __launch_bounds__(ProductTile::kThreads, 2)
    threshold_stage_kernel(const uint16_t* x, int64_t x_stride, const uint16_t* w, int64_t w_stride,
                           int n, const uint16_t* z, int64_t z_stride, const uint16_t* s,
                           int64_t s_stride, int m, const uint16_t* bias, const float* wx,
                           int64_t rows, int p, int row_tiles, ThresholdKind kind, bool positive,
                           float sigma, const float* theta, int theta_step, float* u, uint16_t* out,
                           int64_t out_stride) {
    __shared__ ProductTile tile;
    const int64_t first_row = int64_t(blockIdx.x % row_tiles) * ProductTile::kRows;
    const int64_t first_unit = int64_t(blockIdx.x / row_tiles) * ProductTile::kColumns;
    Accumulators sum{};
    // In a loop, so that there is one copy of the code.
#pragma unroll 1
    for (int second = 0; second < 2; ++second) {
        const int terms = second ? m : n;
        const int64_t stride = second ? z_stride : x_stride;
        const int64_t unit_stride = second ? s_stride : w_stride;
        if (terms == 0) continue;
        if (second) __syncthreads();
        multiply_tile<T, false>(
            tile, {(second ? z : x) + first_row * stride, stride, rows - first_row},
            {(second ? s : w) + first_unit * unit_stride, unit_stride, p - first_unit}, terms, sum);
    }

    const Function h{kind, positive, sigma};
    float* sums = reinterpret_cast<float*>(&tile);
    const int at = int(first_unit) + lane_id() * kPack;
    float of[kPack];
    load_theta(theta, theta_step, at, p, of);
    Pack<float, kPack> b;
#pragma unroll
    for (int v = 0; v < kPack; ++v) b.at[v] = bias && at + v < p ? T::value(bias[at + v]) : 0.0f;
    const bool aligned_wx = rows_aligned<float, kPack>(wx, p);
    const bool aligned_u = rows_aligned<float, kPack>(u, p);
    const bool aligned = rows_aligned<uint16_t, kPack>(out, out_stride);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
        __syncthreads();
        if (Accumulators::first_row() == half * kHalf) put_sums(sum, sums);
        __syncthreads();
        const int64_t above = first_row + half * kHalf;
        const int end = int(min(int64_t(kHalf), rows - above));
        by_kind(h, [&](const Function& of_kind) {
#pragma unroll 2
            for (int i = warp_id(); i < end; i += ProductTile::kThreads / 32) {
                const int64_t row = above + i;
                auto pre = load_pack<kPack>(sums + i * kSumStride, lane_id() * kPack,
                                            ProductTile::kColumns, true);
                Pack<float, kPack> add = b;
                Pack<uint16_t, kPack> pack;
                if (wx) add = load_pack<kPack>(wx + row * p, at, p, aligned_wx);
#pragma unroll
                for (int v = 0; v < kPack; ++v) {
                    pre.at[v] += add.at[v];
                    pack.at[v] = T::rounded(of_kind.value(pre.at[v], of[v]));
                }
                if (u) store_pack<kPack>(u + row * p, at, p, aligned_u, pre);
                store_pack<kPack>(out + row * out_stride, at, p, aligned, pack);
            }
        });
    }
}

namespace {

std::atomic<bool>& fusing() {
    static std::atomic<bool> on{[] {
        const char* word = std::getenv("DEEPL0_CUDA_FUSED");
        return word != nullptr && std::strcmp(word, "1") == 0;
    }()};
    return on;
}

template <class T>
void launch(const Threshold& h, const ThresholdStage& a, cudaStream_t stream) {
    const char* name = "threshold_stage_kernel";
    const auto bits = [](const void* data) { return static_cast<const uint16_t*>(data); };
    const int64_t row_tiles = ceil_div(a.rows, ProductTile::kRows);
    const unsigned blocks = grid_size(row_tiles * ceil_div(a.p, ProductTile::kColumns), name);
    const StageProduct &x = a.first, &z = a.second;
    threshold_stage_kernel<T><<<blocks, ProductTile::kThreads, 0, stream>>>(
        bits(x.rows), x.row_stride, bits(x.units), x.unit_stride, int(x.terms), bits(z.rows),
        z.row_stride, bits(z.units), z.unit_stride, int(z.terms), bits(a.bias), a.wx, a.rows,
        int(a.p), int(row_tiles), h.kind, h.positive, h.sigma, h.theta, h.theta_step, a.u,
        static_cast<uint16_t*>(a.out), a.out_stride);
    launched(name);
}

}  // namespace

void threshold_stage(const Threshold& h, const ThresholdStage& a, cudaStream_t stream) {
    if (a.rows == 0 || a.p == 0) return;
    a.dtype == DType::f16 ? launch<F16>(h, a, stream) : launch<BF16>(h, a, stream);
}

bool fuse_stages(bool on) { return fusing().exchange(on); }
bool fuses_stages() { return fusing(); }

}  // namespace deepl0::cuda
