// One stage of the encoder of thresholds in half types, by one kernel: products on tensor cores, b,
// the threshold, and z rounded to the type; u is written only where it is wanted.
//
// Sums and decisions are float32, z is that of thresholds.h. Deterministic: an entry's sum has one
// order, which the numbers of terms alone decide, not the batch. Bytes and flops: docs/gpu-cuda.md.
#pragma once

#include "thresholds.h"

namespace deepl0::cuda {

/// rows [.., terms] by units [.., terms]: strides in elements. Rows and strides are multiples of 16
/// bytes, whatever the number of terms; without terms nothing is read.
struct StageProduct {
    const void* rows;
    int64_t row_stride;
    const void* units;
    int64_t unit_stride;
    int64_t terms;
};

struct ThresholdStage {
    DType dtype;                 // a half type
    StageProduct first, second;  // their sum; x W' and z S'
    const void* bias;            // [p] or null
    const float* wx;             // [rows, p] or null: what is added in the place of b
    int64_t rows, p;
    float* u;  // [rows, p] or null
    void* out;
    int64_t out_stride;
};

/// u = first + second + b, out = h(u). Bytes: the operands, from L2 by all but the first tiles, out
/// and u written, wx read. 2 rows p flops a term.
void threshold_stage(const Threshold& h, const ThresholdStage& a, cudaStream_t stream);

/// Whether encode_l0 of half types takes this kernel: off until a card has measured it against
/// torch's products. Process-wide; DEEPL0_CUDA_FUSED=1 begins with it. Returns what was before.
bool fuse_stages(bool on);
bool fuses_stages();

}  // namespace deepl0::cuda
