// Panels of rows: their size, and the products and transposes that the panels of several operators
// share.
#pragma once

#include "core/encode.h"
#include "torch/buffer.h"
#include "torch/gemm.h"

namespace deepl0::torch_ops {

/// out = base + x w' for few rows of x (and of base, which may be null), w row-major, out [rows,
/// units]; by several threads where w is worth it. An entry does not depend on their number.
template <class T>
void few_product(const T* x, int64_t ldx, int64_t rows, Matrix<const T> w, const T* base, T* out) {
    constexpr int64_t kTask = int64_t(1) << 20;  // bytes
    const int64_t grain = std::max<int64_t>(16, kTask / (int64_t(sizeof(T)) * (w.cols + 1)));
    torch::stable::parallel_for(0, w.rows, grain, [&](int64_t begin, int64_t end) {
        encode_kernels<T>().product(x, ldx, rows, w.data + begin * w.row_stride, w.row_stride,
                                    end - begin, w.cols, base ? base + begin : nullptr, out + begin,
                                    w.rows);
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

/// Rows of a panel whose [rows, columns] buffer is worked on as a whole.
inline int64_t panel_rows(int64_t columns, size_t element_size, int64_t most) {
    constexpr int64_t kPanelBytes = int64_t(8) << 20;
    const int64_t fit = kPanelBytes / std::max<int64_t>(1, columns * int64_t(element_size));
    return std::clamp<int64_t>(fit, 16, most);
}

}  // namespace deepl0::torch_ops
