// One encoder stage by screening: the m entries of largest |u|, u = W x + b + z for a sparse z, or
// of max(u, 0), without ever holding u.
//
// Every u_i is first approximated, by bf16 products on AMX tiles or in vector registers, by int8
// products or by float32 products in vector registers. A rigorous bound |u_i - approximation| <=
// e_i then tells which few entries can be among the m largest; these are computed again by one
// float32 dot product of fixed order, to which b and then z are added, and the result is selected
// from those values by the contract of top_m.h. A code therefore depends on its rows of x and z, on
// W and b only: not on the batch, the tiling, the number of threads or the kind of approximation.
// Levels avx2 and avx512 agree bit for bit. See docs/screening.md.
//
// The units are visited tile by tile under a running lower bound of the m-th largest |u| of each
// row. Rows that the bound cannot decide (not finite, huge, or too many candidates) are computed in
// float32 throughout, by the same dot product.
#pragma once

#include <cstddef>
#include <cstdint>

#include "encode.h"

namespace deepl0 {

enum class ScreenKind : int { float32, bfloat16_vectors, bfloat16_tiles, int8_vectors };

/// Whether a kind can run for rows of n terms: beside float32 where level avx512 is in force, with
/// avx512_bf16, AMX or avx512_vnni in the CPU, AMX also granted by the operating system (asked for
/// at the first call); int8 up to kInt8MostTerms.
bool screen_has(ScreenKind kind, int64_t n = 1);

/// Whether its products are known to be faster than float32's. bfloat16_vectors: on AMD's
/// processors, which issue vdpbf16ps as often as an fma (measured on Zen 4 and 5; of others nothing
/// was measured). int8_vectors: wherever there is vpdpbusd, which multiplies twice as many (Ice
/// Lake, Zen 4).
bool screen_is_fast(ScreenKind kind, int64_t n = 1);

/// The sums of int8 products, and what they start from, stay below 2^14 n.
constexpr int64_t kInt8MostTerms = 1 << 17;

/// Units are packed in groups of this many.
constexpr int64_t kScreenGroup = 32;

/// Bytes of packed W: 2 p n for bfloat16, 4 p n for float32, p n + 12 p for int8, and 12 p for any,
/// all rounded up.
int64_t screen_packed_bytes(ScreenKind kind, int64_t p, int64_t n);

struct ScreenProblem {
    ScreenKind kind;
    const float* x;  // [rows, n], rows of stride ldx
    int64_t ldx;
    const float* w;  // [p, n], rows of stride ldw
    int64_t ldw;
    int64_t n, p, m;        // 0 <= m <= p < 2^31
    const void* packed;     // all of W, by screen_pack of the same kind; null: nothing is screened
    float* values;          // [rows, m]
    int64_t* indices;       // [rows, m], ascending
    bool positive = false;  // the largest of max(u, 0), not of |u|
    const float* bias = nullptr;         // [p], the one that was packed with W, or null
    const float* z_values = nullptr;     // [rows, z_m], may be null
    const int64_t* z_indices = nullptr;  // [rows, z_m], ascending in each row
    int64_t z_m = 0;
    float bound_scale = 1.0f;  // tests shrink the bound by it; anything below 1 is wrong
};

/// What a call did, summed over its rows.
struct ScreenCounts {
    int64_t rescored = 0;   // entries computed again
    int64_t full_rows = 0;  // rows computed in float32 throughout
};

/// Bytes of workspace for that many rows, or fewer, of z at most z_m entries each.
int64_t screen_workspace_bytes(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m,
                               int64_t z_m = 0);

/// The same for ScreenKernels::few.
int64_t screen_few_workspace_bytes(ScreenKind kind, int64_t rows, int64_t p, int64_t n, int64_t m,
                                   int64_t z_m = 0);

/// The kernels of one ISA level.
struct ScreenKernels {
    /// Packs the units [begin, end) of W [p, n], rows of stride ldw, and of bias, if any. begin
    /// must be a multiple of kScreenGroup, end too or p. Disjoint ranges may run concurrently.
    /// packed: 64-byte aligned.
    void (*pack)(ScreenKind kind, const float* w, int64_t ldw, const float* bias, int64_t p,
                 int64_t n, int64_t begin, int64_t end, void* packed);

    /// Rows [begin, end) of the problem. workspace: screen_workspace_bytes, 64-byte aligned, of the
    /// calling thread; distinct rows may run concurrently.
    /// 2 n p flops per row in the precision of the kind, then about 2 n (m + some) in float32.
    void (*top_m)(const ScreenProblem& problem, int64_t begin, int64_t end, void* workspace,
                  ScreenCounts* counts);

    /// All stages of a few rows of an encoder, u = W x + b + S z, whose W x is screened, or one
    /// stage with the z of the problem; of that, all but values and indices is looked at. steps:
    /// transposed; largest_s: the largest modulus of S. The codes are those of
    /// EncodeKernels::product and rows, bit for bit, of the rows that are marked as decided; of the
    /// others nothing is promised. workspace: screen_few_workspace_bytes. Beside the screening 2 m
    /// p flops a row and step, and about 2 n (m + some) a stage.
    void (*few)(const ScreenProblem& problem, int64_t rows, StepMatrices<float> steps,
                float largest_s, TopMCodes<float> out, void* workspace, bool* decided);

    /// For tests: the approximations and bounds of rows [begin, end), [end - begin, p] each; an
    /// infinite bound marks what is always computed again.
    void (*bounds)(const ScreenProblem& problem, int64_t begin, int64_t end, void* workspace,
                   float* approximations, float* bounds);
};

/// The kernels of the ISA level in force (see active_isa).
const ScreenKernels& screen_kernels();

}  // namespace deepl0
