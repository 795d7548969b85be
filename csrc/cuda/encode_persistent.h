// The whole M-sparse encoder of bfloat16 signals and short codes in one launch: blocks that stay,
// and carry tiles of 64 signals through all stages without leaving the chip.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// The longest code at all, and the length that a code of p entries is padded to: 128, 256 or 512.
constexpr int64_t kPersistentP = 512;
constexpr int64_t persistent_columns(int64_t p) { return p <= 128 ? 128 : p <= 256 ? 256 : 512; }

/// The longest code on the current device: its tile must fit the shared memory of a block. 512 on
/// an A100 or H100, 256 where that is 100 KB.
int64_t persistent_most();

/// The depth of a slice of W: n is a multiple of it.
constexpr int64_t kPersistentDepth = 16;

struct PersistentEncoder {
    const void* x;  // bfloat16 [rows, n], contiguous; 16-byte aligned like W and S
    const void* W;  // bfloat16 [columns, n], columns = persistent_columns(p), 0 from row p on
    const void* S;  // bfloat16 [columns, columns], a stage s_stage further; not read if stages == 1
    int64_t s_stage;
    int64_t rows, n, p, m;
    int stages;
    float* values;  // [rows, m]
    int64_t* indices;
    float* saved_values;  // [stages - 1, rows, m], the codes of the earlier stages, or null
    int64_t* saved_indices;
    void* workspace;  // persistent_workspace_bytes; used if stages > 2
};

size_t persistent_workspace_bytes(int64_t rows, int64_t p, int stages);

/// z_1 = top_m(x W'), z_{k+1} = top_m(x W' + z_k S'), 0 < m <= p <= kPersistentP, by the contract
/// of top_m.h. Products on tensor cores with float32 sums: those of x W' are exact; z_k stays
/// float32 and is multiplied as the exact sum of three bfloat16 numbers, so a product is off by no
/// more than the float32 sums are. The same bits in any batch.
///
/// Bytes from memory a row: 2 n, and 12 m of results (12 m a stage more if saved); from L2 a tile
/// of 64 rows: 2 columns (n + (stages - 1) columns). Flops of bfloat16: 2 columns n + 6 columns^2 a
/// further stage. x W' stays in the accumulators for the second stage; for later ones it is written
/// to the workspace once, 256 columns bytes a tile, and read back in each.
void encode_top_m(const PersistentEncoder& a, cudaStream_t stream);

}  // namespace deepl0::cuda
