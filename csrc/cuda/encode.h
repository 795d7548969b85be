// One stage of the M-sparse encoder on the GPU as a gather: z is M-sparse, so z S' is a sum of M
// rows of S', accumulated onto W x and selected from while it is on the chip.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

struct GatherStage {
    const float* wx;  // [rows, p], rows of stride wx_stride
    int64_t wx_stride;
    const float* values;  // [rows, m]: z; contiguous
    const int64_t* indices;
    DType dtype;     // of S'
    const void* st;  // S' [p, p]: row j is column j of S; rows of stride st_stride
    int64_t st_stride;
    int64_t rows, p, m;
    bool positive;
    float* out_values;  // [rows, m], rounded to `dtype`
    int64_t* out_indices;
};

/// The longest row that a block selects from, in float32 in shared memory, on the current device.
int64_t gather_top_m_most();

/// The m entries of largest |u|, u = wx + z S', by the contract of top_m.h (and its `positive`),
/// for p <= gather_top_m_most(). The sum starts with wx and adds the entries of z in order, by
/// fused multiply-adds: the same bits in any batch. An index outside [0, p) stops the kernel.
///
/// p <= 1024: a warp a row, u in registers; else a block a row, u in shared memory. Bytes: 4 p of
/// wx and 24 m of codes from memory, m p elements of S' (from L2 while it fits there), 2 m p flops.
void gather_top_m(const GatherStage& a, cudaStream_t stream);

}  // namespace deepl0::cuda
