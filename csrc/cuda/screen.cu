// Steps 1 and 2 of screen.h: operands in bfloat16, and their products.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "screen.cuh"
#include "top_m.h"

namespace deepl0::cuda {

namespace {

constexpr int kThreads = 256;

/// At least the norm, from a float sum of n squares of any order, some of them underflowed.
__device__ float norm_bound(float squares, int n) {
    const float inflate = 1.0f + float(n + 64) * 0x1p-23f;
    return sqrtf(squares * inflate + float(n + 1) * 0x1p-125f) * (1.0f + 0x1p-21f);
}

/// Norms of a row and of what its rounding took.
struct Norms {
    float whole, lost;
};

/// A warp rounds a row of n terms to nearest even, subnormal results to zero, followed by zeros up
/// to `depth`. A null row is one of zeros.
__device__ Norms round_row(const float* row, bool aligned, int n, int depth, uint16_t* out) {
    float whole = 0.0f, lost = 0.0f;
#pragma unroll 1
    for (int k = 4 * lane_id(); k < depth; k += 128) {
        Pack<float, 4> x{};
        if (row) x = load_pack<4>(row, k, n, aligned);
        Pack<uint16_t, 4> pack;
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            const uint16_t b = BF16::rounded(x.at[v]);
            pack.at[v] = (b & 0x7f80) != 0 ? b : uint16_t(0);
            const float rest = x.at[v] - BF16::value(pack.at[v]);
            whole = fmaf(x.at[v], x.at[v], whole);
            lost = fmaf(rest, rest, lost);
        }
        *reinterpret_cast<Pack<uint16_t, 4>*>(out + k) = pack;
    }
    return {norm_bound(warp_sum(whole), n), norm_bound(warp_sum(lost), n)};
}

}  // namespace

/// A warp a row of x: bounds {A, C} of e = A |W| + C |W - Wb| + c |b| + tiny; A is NaN of a row
/// that is not screened.
__global__ void __launch_bounds__(kThreads)
    screen_rows_kernel(const float* x, int64_t stride, int64_t rows, int n, int depth,
                       uint16_t* out, float2* bounds) {
    const int64_t row = int64_t(blockIdx.x) * (kThreads / 32) + warp_id();
    const bool real = row < rows;
    const Norms norms = round_row(real ? x + row * stride : nullptr,
                                  rows_aligned<float, 4>(x, stride), n, depth, out + row * depth);
    if (!real || lane_id() != 0) return;
    const bool bounded = norms.whole <= kLargest;
    const float a = norms.lost * 1.0001f + summation_factor(n) * norms.whole;
    bounds[row] = {bounded ? a : __int_as_float(0x7fc00000), (norms.whole + norms.lost) * 1.0001f};
}

/// A block a group of W: the largest |W|, |W - Wb| and |b| of its units. |W| is infinite where a
/// unit is to be computed for every row.
__global__ void __launch_bounds__(32 * kGroup)
    screen_units_kernel(const float* w, int64_t stride, const float* bias, int p, int n, int depth,
                        uint16_t* out, float4* bounds) {
    __shared__ float whole[kGroup], lost[kGroup], size[kGroup];
    const int64_t unit = int64_t(blockIdx.x) * kGroup + warp_id();
    const bool real = unit < p;
    const Norms norms = round_row(real ? w + unit * stride : nullptr,
                                  rows_aligned<float, 4>(w, stride), n, depth, out + unit * depth);
    if (lane_id() == 0) {
        const float b = real && bias ? fabsf(bias[unit]) : 0.0f;
        const bool bounded = norms.whole <= kLargest && b <= kLargest;
        whole[warp_id()] = bounded ? norms.whole : __int_as_float(0x7f800000);
        lost[warp_id()] = bounded ? norms.lost : 0.0f;
        size[warp_id()] = bounded ? b : 0.0f;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    float4 most{0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < kGroup; ++i) {
        most.x = fmaxf(most.x, whole[i]);
        most.y = fmaxf(most.y, lost[i]);
        most.z = fmaxf(most.z, size[i]);
    }
    bounds[blockIdx.x] = most;
}

/// tops[r, g]: the two largest approximations of group g. x and w: whole tiles of rounded rows of
/// `depth` terms; groups: of whole tiles.
template <bool POSITIVE>
__global__ void __launch_bounds__(ProductTile::kThreads, 2)
    screen_product_kernel(const uint16_t* x, const uint16_t* w, const float* bias, int64_t rows,
                          int p, int depth, int row_tiles, int64_t groups, Top* tops) {
    __shared__ ProductTile tile;
    constexpr int kAcross = Accumulators::kAcross, kDown = Accumulators::kDown;
    const int64_t first_row = int64_t(blockIdx.x % row_tiles) * ProductTile::kRows;
    const int first_unit = int(blockIdx.x / row_tiles) * ProductTile::kColumns;
    const int unit = first_unit + Accumulators::first_column() + lane_id() % 4 * 2;
    Accumulators sum;
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
            const int i = unit + 8 * j + v;
            const float b = bias && i < p ? bias[i] : 0.0f;
#pragma unroll
            for (int d = 0; d < kDown; ++d) sum.at[d][j][v] = sum.at[d][j][v + 2] = b;
        }
    }
    constexpr int64_t kRows = ProductTile::kRows;
    multiply_tile<BF16, true>(tile, {x + first_row * depth, depth, kRows},
                              {w + int64_t(first_unit) * depth, depth, kRows}, depth, sum);

    constexpr int kGroups = Accumulators::kColumns / kGroup;
    static_assert(kGroups == 2, "a pack of 16 bytes");
    Top* to = tops + (first_unit + Accumulators::first_column()) / kGroup;
#pragma unroll
    for (int d = 0; d < kDown; ++d) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Pack<Top, kGroups> best;
#pragma unroll
            for (int g = 0; g < kGroups; ++g) {
                const auto key = [&](int i) {
                    const int j = i / 2, place = 8 * j + lane_id() % 4 * 2 + i % 2;
                    return packed<POSITIVE>(sum.at[d][2 * g + j][2 * half + i % 2], place);
                };
                Top top{max(key(0), key(1)), min(key(0), key(1))};
                top.join({max(key(2), key(3)), min(key(2), key(3))});
#pragma unroll
                for (int lanes = 1; lanes < 4; lanes *= 2)
                    top.join({__shfl_xor_sync(kAllLanes, top.first, lanes),
                              __shfl_xor_sync(kAllLanes, top.second, lanes)});
                best.at[g] = top;
            }
            const int64_t row =
                first_row + Accumulators::first_row() + 16 * d + 8 * half + lane_id() / 4;
            if (lane_id() % 4 == d && row < rows)
                *reinterpret_cast<Pack<Top, kGroups>*>(to + row * groups) = best;
        }
    }
}

namespace {

std::atomic<bool>& screening() {
    static std::atomic<bool> on{[] {
        const char* word = std::getenv("DEEPL0_SCREEN");
        return word != nullptr && std::strcmp(word, "1") == 0;
    }()};
    return on;
}

template <bool POSITIVE>
void launch_product(const ScreenedTopM& a, const Parts& s, cudaStream_t stream) {
    const char* name = "screen_product_kernel";
    const int64_t row_tiles = s.padded / ProductTile::kRows;
    const unsigned blocks = grid_size(row_tiles * (s.units / ProductTile::kColumns), name);
    screen_product_kernel<POSITIVE><<<blocks, ProductTile::kThreads, 0, stream>>>(
        s.x, s.w, a.bias, a.rows, int(a.p), int(s.depth), int(row_tiles), s.units / kGroup, s.tops);
    launched(name);
}

}  // namespace

bool screening_serves(int64_t n, int64_t p, int64_t m) {
    const bool can = 0 < m && m <= kMostScreened && 0 < n && n <= kMostTerms && p <= kMostEntries;
    return can && p >= 2048 && p >= 128 * m;
}

bool screen_stages(bool on) { return screening().exchange(on); }
bool screens_stages() { return screening(); }

size_t screen_workspace_bytes(int64_t rows, int64_t n, int64_t p) {
    return Parts(rows, n, p, nullptr).bytes;
}

void screen_units(const ScreenedTopM& a, void* workspace, cudaStream_t stream) {
    const Parts s(0, a.n, a.p, workspace);  // of W alone
    const char* name = "screen_units_kernel";
    screen_units_kernel<<<grid_size(s.units / kGroup, name), 32 * kGroup, 0, stream>>>(
        a.w, a.w_stride, a.bias, int(a.p), int(a.n), int(s.depth), s.w, s.of_units);
    launched(name);
}

void screened_top_m(const ScreenedTopM& a, void* workspace, cudaStream_t stream) {
    if (a.rows == 0) return;
    const Parts s(a.rows, a.n, a.p, workspace);
    const char* name = "screen_rows_kernel";
    screen_rows_kernel<<<grid_size(s.padded / (kThreads / 32), name), kThreads, 0, stream>>>(
        a.x, a.x_stride, a.rows, int(a.n), int(s.depth), s.x, s.of_rows);
    launched(name);
    a.positive ? launch_product<true>(a, s, stream) : launch_product<false>(a, s, stream);
    select_screened(a, s, stream);
}

}  // namespace deepl0::cuda
