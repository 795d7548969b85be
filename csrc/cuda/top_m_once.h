// Selection of rows beyond 1,024 entries, of which memory is read once and the chip holds no copy.
//
// Contract as in top_m.h. A block streams a row or a segment past a bar that at least m entries are
// known to reach, and collects what reaches it in shared memory. The first bar is the m-th largest
// of the maxima of disjoint groups of the first tile; where what was collected overflows, and after
// 4, 16, 64 .. tiles, its m-th best is the next. The bar is proven at every time: no row is read
// again, in whatever order its entries come; only the number of times that it is raised depends on
// that. Entries arrive in no fixed order, and the order decides nothing: what is kept is a cut of a
// total order (key, then index) of all that reached the bar, ranked by a bitmap of their places.
//
// Few long rows are cut into slices, so that blocks fill the device. A slice leaves its m best;
// from these, which stand in index order, m are selected again, and a map gives them their indices.
#pragma once

#include "launch.h"

namespace deepl0::cuda {

struct OnceTopM {
    size_t element;  // bytes
    const void* u;
    int64_t u_stride, rows;
    int p, segment, m, nan;  // entries of a row, of a segment; nan: its key
    bool positive;
    const int64_t* map;  // [rows, u_stride], indices of the entries; null where they are places
    void* values;        // with a mask: the dense rows
    int64_t* indices;    // null with a mask
    int64_t out_stride;
    uint8_t* mask;  // of rows of one segment, else null
    cudaStream_t stream;
};

/// The longest row or segment of one block.
constexpr int64_t kMostOnce = 1 << 17;

/// Dynamic shared memory of a block.
size_t once_shared_bytes(size_t element, int64_t segment, int64_t m);

/// Entries of the segments that rows are cut into: p of a whole row, and whole tiles of 16 KB where
/// rows are longer than a block takes, or no more than the multiprocessors: as many segments then
/// as are resident at once, where that spares a block more tiles than a second kernel takes time.
/// 64 m entries at least (96 m of half types), so that the candidates are a tenth of the row, and
/// no fewer than the row leaves candidates, which one block merges. 0 where this is no way to
/// select: rows up to 1,024 entries (2,047 of half types), and m beyond a 32nd part of a segment or
/// beyond what shared memory holds twice, from where on it takes more instructions.
int64_t once_segment(size_t element, int64_t rows, int64_t p, int64_t m, const Device& device);

/// Segment s of a row writes min(m, its entries) results from s * m on. Bytes: p elements read,
/// m (element + 8) written; with a mask p elements, p / 8 bytes, and the m elements once more.
void top_m_once(const OnceTopM& a);

}  // namespace deepl0::cuda
