// Transposition by squares of vector registers. For files that are compiled once per ISA level.
#pragma once

#include <cstdint>
#include <utility>

#include "gather.h"

namespace deepl0::DEEPL0_ISA {

#ifdef DEEPL0_SHUFFLES
/// Exchanges the off-diagonal H x H squares of N vectors of N lanes.
template <class V, int N, int H, int... L>
DEEPL0_INLINE void exchange_squares(V* r, std::integer_sequence<int, L...>) {
    for (int i = 0; i < N; ++i) {
        if (i & H) continue;
        const V a = r[i], b = r[i + H];
        r[i] = __builtin_shufflevector(a, b, (L & H ? N + (L ^ H) : L)...);
        r[i + H] = __builtin_shufflevector(a, b, (L & H ? N + L : (L ^ H))...);
    }
}

/// The N x N square whose rows are one vector each.
template <class T>
DEEPL0_INLINE void transpose_square(const T* src, int64_t lds, T* dst, int64_t ldd) {
    using V = typename Vector<T>::type;
    constexpr int N = kVectorBytes / int(sizeof(T));
    constexpr auto lanes = std::make_integer_sequence<int, N>{};
    V r[N];
    for (int i = 0; i < N; ++i) r[i] = *reinterpret_cast<const V*>(src + i * lds);
    if constexpr (N > 8) exchange_squares<V, N, 8>(r, lanes);
    if constexpr (N > 4) exchange_squares<V, N, 4>(r, lanes);
    if constexpr (N > 2) exchange_squares<V, N, 2>(r, lanes);
    exchange_squares<V, N, 1>(r, lanes);
    for (int i = 0; i < N; ++i) *reinterpret_cast<V*>(dst + i * ldd) = r[i];
}
#else
template <class T>
DEEPL0_INLINE void transpose_square(const T* src, int64_t lds, T* dst, int64_t ldd) {
    constexpr int N = kVectorBytes / int(sizeof(T));
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) dst[j * ldd + i] = src[i * lds + j];
}
#endif

/// dst[j * ldd + i] = src[i * lds + j], i < rows, j < cols. About 40 GB/s in L2, 25 from L3.
template <class T>
DEEPL0_INLINE void transpose(const T* src, int64_t lds, int64_t rows, int64_t cols, T* dst,
                             int64_t ldd) {
    constexpr int64_t N = kVectorBytes / int(sizeof(T));
    constexpr int64_t kBlock = 64;  // the lines of dst being filled stay in L1
    for (int64_t j0 = 0; j0 < cols; j0 += kBlock) {
        const int64_t j1 = j0 + kBlock < cols ? j0 + kBlock : cols;
        int64_t i = 0;
        for (; i + N <= rows; i += N) {
            int64_t j = j0;
            for (; j + N <= j1; j += N)
                transpose_square(src + i * lds + j, lds, dst + j * ldd + i, ldd);
            for (; j < j1; ++j)
                for (int64_t k = 0; k < N; ++k) dst[j * ldd + i + k] = src[(i + k) * lds + j];
        }
        for (; i < rows; ++i)
            for (int64_t j = j0; j < j1; ++j) dst[j * ldd + i] = src[i * lds + j];
    }
}

}  // namespace deepl0::DEEPL0_ISA
