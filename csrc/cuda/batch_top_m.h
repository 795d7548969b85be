// Selection over a whole batch on the GPU: of all rows the m entries of largest magnitude, however
// many of them a row has.
//
// Contract as in core/batch_top_m.h. A radix histogram over the batch finds the cut digit by digit
// from the top (11, 10, 10 bits of a key; 8, 7 of half types), each by two kernels: histogram,
// digit. Then pieces of rows are counted, the counts are added up, and every piece writes what it
// keeps at its place. Counts are integers, so the order of the atomic additions cannot be seen.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

size_t batch_top_m_workspace_bytes(int64_t rows, int64_t p);

/// values[0..m), indices[0..m): the m entries of largest |u| (positive: of max(u, 0), whose zeros
/// are +0) of the rows u[r, 0..p), row after row; offsets[r], r <= rows: where those of row r
/// begin. 0 <= m <= rows p, p <= kMostEntries. Bytes: u is read 5 times, of half types 4; m
/// (element + 8) and 24 for 2048 entries of a row written.
void batch_top_m(DType dtype, const void* u, int64_t u_stride, int64_t rows, int64_t p, int64_t m,
                 bool positive, void* values, int64_t* indices, int64_t* offsets, void* workspace,
                 cudaStream_t stream);

}  // namespace deepl0::cuda
