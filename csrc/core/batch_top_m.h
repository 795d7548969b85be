// Selection over a whole batch: of B rows the m entries of largest magnitude, however many of them
// a row has.
//
// Contract: that of top_m.h with the batch, row after row, in the place of a row: exactly m
// entries, ties to the lowest row and then to the lowest column, every NaN above inf; values
// bit-equal, columns ascending in a row. `positive` selects from max(u, 0), whose zeros are +0.
//
// The rows are read once. Each part of them, by one thread, keeps candidates in the order of the
// batch: what exceeds the m-th largest of those before it, for a later entry that is equal loses
// against m earlier ones. When they fill their memory all but the m best are dropped. The cut of
// the batch is then that of the candidates of all parts together, so neither the number of parts
// nor of threads can be seen:
//
//     collect each part -> cut of all keys -> keep in each part -> write each part
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace deepl0 {

/// Candidates of a range of rows: keys of batch_key_bytes and their columns, of row r of the range
/// from starts[r] to starts[r + 1].
struct BatchPart {
    void* keys;
    int32_t* columns;
    int64_t* starts;  // [rows + 1]
};

/// What is kept: keys > key, and of those == key the first `ties` in the order of the batch.
struct BatchCut {
    int64_t key, ties;
};

size_t batch_key_bytes(DType dtype);

/// Elements beyond the last that may be overwritten.
constexpr int64_t kBatchSlack = 64;

/// Elements of keys, columns and scratch of a part of so many entries: at most 2 m and a constant.
int64_t batch_capacity(int64_t entries, int64_t m);

/// The kernels of one ISA level.
struct BatchTopMKernels {
    /// The candidates of the rows [row_begin, row_end), among them all of these rows that are among
    /// the m of the batch. p < 2^31, m > 0. scratch: as many keys as part.keys.
    void (*collect)(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m,
                    bool positive, int64_t row_begin, int64_t row_end, BatchPart part,
                    void* scratch);

    /// The cut that keeps m of n keys, 0 < m <= n, which it overwrites; they have the slack.
    BatchCut (*cut)(DType dtype, void* keys, int64_t n, int64_t m);

    /// Keys of a part that are equal to `key`.
    int64_t (*tied)(DType dtype, BatchPart part, int64_t rows, int64_t key);

    /// Drops all candidates of a part but those that the cut keeps.
    void (*keep)(DType dtype, BatchPart part, int64_t rows, BatchCut cut);

    /// offsets[r] of the rows [row_begin, row_end), and from `begin` on the values and indices of
    /// the part, which has what is kept.
    void (*write)(DType dtype, const void* u, int64_t u_stride, bool positive, int64_t row_begin,
                  int64_t row_end, BatchPart part, int64_t begin, int64_t* offsets, void* values,
                  int64_t* indices);
};

/// The kernels of the ISA level in force (see active_isa).
const BatchTopMKernels& batch_top_m_kernels();

}  // namespace deepl0
