// Panels of rows: their size, and the products and transposes that the panels of several operators
// share.
#pragma once

#include "core/encode.h"
#include "torch/buffer.h"
#include "torch/gemm.h"

namespace deepl0::torch_ops {

/// out = base + x w' for few rows of x and of base (stride ldb; null: 0), w row-major, out [rows,
/// units]; by several threads where w is worth it. An entry does not depend on their number.
template <class T>
void few_product(const T* x, int64_t ldx, int64_t rows, Matrix<const T> w, const T* base,
                 int64_t ldb, T* out) {
    constexpr int64_t kTask = int64_t(1) << 20;  // bytes
    const int64_t grain = std::max<int64_t>(16, kTask / (int64_t(sizeof(T)) * (w.cols + 1)));
    torch::stable::parallel_for(0, w.rows, grain, [&](int64_t begin, int64_t end) {
        encode_kernels<T>().product(x, ldx, rows, w.data + begin * w.row_stride, w.row_stride,
                                    end - begin, w.cols, base ? base + begin : nullptr, ldb,
                                    out + begin, w.rows);
    });
}

/// out = s' of a plain s [rows, cols].
template <class T>
void transpose_matrix(const T* s, int64_t rows, int64_t cols, T* out) {
    torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
        encode_kernels<T>().transpose(s, rows, cols, begin, end, out);
    });
}

/// Size of the L2 cache of a core, 1 MiB where the system does not tell.
int64_t l2_bytes();

/// From so many rows on an entry of torch's product was seen to have the same bits however many
/// there are (MKL; with fewer, other kernels run). No product is given fewer rows of a batch that
/// has more, so that its bits do not depend on the number of threads.
constexpr int64_t kLeastRows = 16;

/// Rows of a panel whose [rows, columns] buffer is worked on as a whole.
inline int64_t panel_rows(int64_t columns, size_t element_size, int64_t most) {
    constexpr int64_t kPanelBytes = int64_t(8) << 20;
    const int64_t fit = kPanelBytes / std::max<int64_t>(1, columns * int64_t(element_size));
    return std::clamp<int64_t>(fit, 2 * kLeastRows, most);
}

/// f(begin, end) in parallel for ranges that make up [0, rows), none of fewer than kLeastRows.
template <class F>
void each_range(int64_t rows, const F& f) {
    const int64_t blocks = std::max<int64_t>(1, rows / kLeastRows);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t b0, int64_t b1) {
        f(b0 * kLeastRows, b1 == blocks ? rows : b1 * kLeastRows);
    });
}

/// f(first, rows) for panels that make up [begin, end), at most `most` rows each (panel_rows), none
/// of fewer than kLeastRows unless the range is.
template <class F>
void each_panel(int64_t begin, int64_t end, int64_t most, const F& f) {
    const int64_t rows = end - begin, panels = (rows + most - 1) / most;
    for (int64_t i = 0; i < panels; ++i) {
        const int64_t first = begin + rows * i / panels;
        f(first, begin + rows * (i + 1) / panels - first);
    }
}

}  // namespace deepl0::torch_ops
