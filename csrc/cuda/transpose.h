// The transpose of a matrix, for rows of S' or D' to be gathered from.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// out [columns, rows], contiguous, of in [rows, columns] with rows of stride in_stride; elements
/// of 2 or 4 bytes. Read once and written once, by tiles of 32 x 32 in shared memory.
void transpose(size_t element, const void* in, int64_t in_stride, int64_t rows, int64_t columns,
               void* out, cudaStream_t stream);

}  // namespace deepl0::cuda
