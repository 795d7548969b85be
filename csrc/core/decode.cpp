#include "decode.h"

#include "gather.h"
#include "kernel_table.h"
#include "sizes.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

template <class T>
void rows_impl(const T* values, const int64_t* indices, int64_t rows, int64_t m, const T* dt,
               int64_t n, T* out) {
    for (int64_t r = 0; r < rows; ++r)
        gather_sum(out + r * n, static_cast<const T*>(nullptr), dt, n, values + r * m,
                   indices + r * m, m, n);
}

template <class T>
void columns_impl(const T* values, const int64_t* indices, int64_t rows, int64_t m, const T* d,
                  int64_t n, int64_t p, T* out) {
    // Some rows of d at a time for all rows of the code, while their pages are at hand.
    constexpr int64_t kSome = 8;
    for (int64_t i = 0; i < n; i += kSome)
        for (int64_t r = 0; r < rows; ++r)
            gather_columns(out + r * n + i, static_cast<const T*>(nullptr), d + i * p, p,
                           values + r * m, indices + r * m, m, smaller(kSome, n - i));
}

/// dots[i] = <x, rows[i]> for N rows.
template <int N, class T>
DEEPL0_INLINE void dot_rows(const T* x, const T* const* rows, int64_t n, T* dots) {
    using V = typename Vector<T>::type;
    constexpr int64_t W = kVectorBytes / int64_t(sizeof(T));
    V acc[N] = {};
    int64_t c = 0;
    for (; c + W <= n; c += W) {
        const V xv = *reinterpret_cast<const V*>(x + c);
        for (int i = 0; i < N; ++i)
            acc[i] = fused(xv, V(*reinterpret_cast<const V*>(rows[i] + c)), acc[i]);
    }
    for (int i = 0; i < N; ++i) {
        dots[i] = sum_of_lanes<T, kVectorBytes>(acc[i]);
        for (int64_t t = c; t < n; ++t) dots[i] = fused(x[t], rows[i][t], dots[i]);
    }
}

template <class T>
void dots_impl(const T* grad, const int64_t* indices, int64_t rows, int64_t m, const T* dt,
               int64_t n, T* grad_values) {
    for (int64_t r = 0; r < rows; ++r, grad += n, indices += m, grad_values += m) {
        int64_t j = 0;
        for (; j + 4 <= m; j += 4) {
            const T* atoms[4];
            for (int i = 0; i < 4; ++i) atoms[i] = dt + indices[j + i] * n;
            dot_rows<4>(grad, atoms, n, grad_values + j);
        }
        for (; j < m; ++j) {
            const T* atom = dt + indices[j] * n;
            dot_rows<1>(grad, &atom, n, grad_values + j);
        }
    }
}

template <class T>
constexpr DecodeKernels<T> kDecode = {rows_impl<T>, columns_impl<T>, dots_impl<T>};

}  // namespace

extern const DecodeKernels<float> decode_f32;
extern const DecodeKernels<double> decode_f64;
const DecodeKernels<float> decode_f32 = kDecode<float>;
const DecodeKernels<double> decode_f64 = kDecode<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(DecodeKernels, decode)
#endif

}  // namespace deepl0
