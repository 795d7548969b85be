// One encoder stage by screening: the m entries of largest |u|, u = W x + b + z for a sparse z, or
// of max(u, 0), in float32, without ever holding u. The same operator as core/screen.h, by another
// division of work:
//
// 1. x and W are rounded to bfloat16, and norms and what the rounding took are measured.
// 2. Tensor cores multiply them. Of every 16 neighbouring units (a group) a row keeps the two
//    largest |approximation|, 8 bytes, with their places.
// 3. A block a row: the bound |u_i - approximation| <= e turns the first of each group into a lower
//    bound of one entry; entries of z are computed. The m-th largest of them is a proven lower
//    bound of the m-th largest |u|. What may reach it are candidates: of a group its first, or
//    where its second may as well, all of it. They are computed again, each by one float32 dot
//    product of fixed order, and selected by the contract of top_m.h.
// 4. Rows that this does not decide (not finite, norm beyond 2^60, more candidates than there is
//    room for) are computed throughout, by the same dot product.
//
// A code depends on its row, on W and on b only: not on the batch, the device, or what was a
// candidate. Nothing is read back by the host. Bound and measurements: docs/gpu-cuda.md.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

struct ScreenedTopM {
    const float* x;  // [rows, n], rows of x_stride
    int64_t x_stride;
    const float* w;  // [p, n], rows of w_stride
    int64_t w_stride;
    const float* bias;  // [p] or null
    int64_t rows, n, p, m;
    bool positive;
    float* values;                       // [rows, m]
    int64_t* indices;                    // [rows, m], ascending
    const float* z_values = nullptr;     // [rows, z_m]
    const int64_t* z_indices = nullptr;  // [rows, z_m], ascending, in [0, p)
    int64_t z_m = 0;
};

/// What the kernels serve, 0 < m <= kMostScreened, 0 < n <= kMostTerms, m <= p <= kMostEntries of
/// top_m.h; and where screening is taken if it is on: p >= 2,048, and of 16 neighbours seldom two
/// among the m largest, p >= 128 m.
constexpr int64_t kMostScreened = 512, kMostTerms = 1 << 20;
constexpr int64_t kMostUnitsOfZ = 1 << 20;  // p with a z, of which z_m <= kMostScreened
bool screening_serves(int64_t n, int64_t p, int64_t m);

/// Whether stages are screened where that serves: off until a card has measured it against product
/// and selection. Process-wide; DEEPL0_SCREEN=1 begins with it. Returns what was before.
bool screen_stages(bool on);
bool screens_stages();

/// Bytes of workspace, for that many rows or fewer.
size_t screen_workspace_bytes(int64_t rows, int64_t n, int64_t p);

/// Rounds W into the workspace, which later calls of screened_top_m with the same w, bias, n, p and
/// a workspace for the same `rows` use. Bytes: 4 p n read, 2 p n and p written.
void screen_units(const ScreenedTopM& a, void* workspace, cudaStream_t stream);

/// Bytes beyond x, 8 m of codes and W, which is read from L2 where it fits: p / 2 a row, written
/// and read. 2 n p flops a row of bfloat16, and 2 n a candidate of float32. 0 < m <= kMostScreened,
/// 0 < n <= kMostTerms.
void screened_top_m(const ScreenedTopM& a, void* workspace, cudaStream_t stream);

}  // namespace deepl0::cuda
