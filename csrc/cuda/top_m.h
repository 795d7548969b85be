// Selection over the last dimension on the GPU: max_M pooling and unpooling.
//
// Contract as in core/top_m.h: the key of an entry is |u|, every NaN above inf, -0.0 equal to 0.0;
// exactly m entries, ties to the lowest index; values bit for bit, indices ascending. `positive`
// selects from max(u, 0) in the place of u, whose zeros are +0 and not in the mask. The result
// depends on the row alone: not on the batch, the device or the plan. Strides are in elements, the
// data needs the alignment of its element only; results are contiguous. Rows: below 2^31; offsets
// are 64-bit.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

/// Throws what a launch on the current device would meet: a driver older than the runtime, no
/// driver, or a device that none of the compiled architectures serves.
void probe();

/// The longest row: some below 2^31, so that 32-bit loop counters do not wrap.
constexpr int64_t kMostEntries = INT32_MAX - 65536;

/// How rows are selected from.
enum class Path {
    warp,    // a warp a row, in registers; one pass over memory
    block,   // a block a row or a segment, in shared memory; one pass over memory
    stream,  // a block a row, read again for every pass: up to five
    once,    // top_m_once.h
};

struct Plan {
    Path path;
    int segment;  // p; where less, m of each segment are selected, and then m of those
};

/// `once`, where top_m_once.h serves: that. Else p <= 1024: warp. Rows of which two fit in shared
/// memory: block, unless they are long and so few that half of the multiprocessors would idle.
/// Those and longer rows are cut into segments of at least 4 m entries, so that at most a quarter
/// is left as candidates (which are planned again); or streamed where a segment of 4 m does not
/// fit.
Plan plan_top_m(DType dtype, int64_t rows, int64_t p, int64_t m, bool once, const Device& device);

/// Whether rows beyond 1,024 entries are selected from by top_m_once.h where that serves: off until
/// a card has measured it against the paths above. Process-wide; DEEPL0_CUDA_ONCE=1 begins with it.
/// Returns what was before.
bool read_rows_once(bool on);

/// Bytes of workspace for top_m, and keep_top_m, whichever way rows are read: 0 unless they are cut
/// into segments.
size_t top_m_workspace_bytes(DType dtype, int64_t rows, int64_t p, int64_t m, bool keep);

/// values[r, 0..m), indices[r, 0..m): the m entries of largest |u[r, :]|. 0 <= m <= p <=
/// kMostEntries. Bytes: p elements read (paths warp and block), m (element + 8) written; segments
/// add twice the candidates.
void top_m(DType dtype, const void* u, int64_t u_stride, int64_t rows, int64_t p, int64_t m,
           bool positive, void* values, int64_t* indices, void* workspace, cudaStream_t stream);

/// out[r, j] = u[r, j] where j is among the m entries of largest |u[r, :]|, else +0; bit j % 8 of
/// byte j / 8 of mask [rows, ceil(p / 8)] tells which, padding bits are 0. Bytes: p elements read,
/// p elements and p / 8 bytes written (paths warp and block).
void keep_top_m(DType dtype, const void* u, int64_t u_stride, int64_t rows, int64_t p, int64_t m,
                bool positive, void* out, uint8_t* mask, void* workspace, cudaStream_t stream);

/// out[r, :] = 0 except out[r, indices[r, i]] = values[r, i], i < m; elements of `element` bytes.
/// An index outside [0, size) stops the kernel, and the stream with it. Bytes: the row and 2 m more
/// sectors.
void unpool(size_t element, const void* values, const int64_t* indices, int64_t rows, int64_t m,
            int64_t size, void* out, cudaStream_t stream);

/// out[r, j] = u[r, j] where the bit of mask [rows, ceil(p / 8)] is set, else +0. Reads p elements
/// and p / 8 bytes, writes p.
void apply_mask(size_t element, const void* u, int64_t u_stride, const uint8_t* mask, int64_t rows,
                int64_t p, void* out, cudaStream_t stream);

}  // namespace deepl0::cuda
