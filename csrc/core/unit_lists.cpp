#include "unit_lists.h"

#include <cstring>

#include "gather.h"
#include "kernel_table.h"
#include "nonzeros.h"
#include "simd.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

template <class T>
void group_impl(SparseRows<T> z, int64_t rows, int64_t p, UnitLists<T> lists) {
    const int64_t begin = z.begin(0), end = z.end(rows - 1);
    int32_t* next = lists.start + 1;  // becomes the write position of unit i, then its end
    memset(lists.start, 0, size_t(p + 1) * sizeof(int32_t));
    for (int64_t e = begin; e < end; ++e) {
        if (z.index[e] + 1 < p) ++next[z.index[e] + 1];
    }
    for (int64_t i = 1; i < p; ++i) next[i] += next[i - 1];
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t e = z.begin(r); e < z.end(r); ++e) {
            const int32_t at = next[z.index[e]]++;
            lists.row[at] = int32_t(r);
            lists.coefficient[at] = z.value[e];
            if (lists.place) lists.place[at] = int32_t(e);
        }
    }
}

/// out[e] += c * s[index[e]], e < n.
template <class T>
DEEPL0_INLINE void add_gathered(T* out, const T* s, const int32_t* index, int64_t n, T c) {
    int64_t e = 0;
#if DEEPL0_ISA_LEVEL == 2
    if constexpr (sizeof(T) == 4) {
        for (; e + 16 <= n; e += 16) {
            const __m512 v = _mm512_i32gather_ps(_mm512_loadu_si512(index + e), s, 4);
            const __m512 sum = _mm512_fmadd_ps(v, _mm512_set1_ps(c), _mm512_loadu_ps(out + e));
            _mm512_storeu_ps(out + e, sum);
        }
    } else {
        for (; e + 8 <= n; e += 8) {
            const __m256i i = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index + e));
            const __m512d v = _mm512_i32gather_pd(i, s, 8);
            const __m512d sum = _mm512_fmadd_pd(v, _mm512_set1_pd(c), _mm512_loadu_pd(out + e));
            _mm512_storeu_pd(out + e, sum);
        }
    }
#endif
    for (; e < n; ++e) out[e] = fused(c, s[index[e]], out[e]);
}

/// sum_e value[e] * s[index[e]], e < n.
template <class T>
DEEPL0_INLINE T dot_gathered(const T* value, const T* s, const int32_t* index, int64_t n) {
    T sum = 0;
    int64_t e = 0;
#if DEEPL0_ISA_LEVEL == 2
    if constexpr (sizeof(T) == 4) {
        __m512 acc = _mm512_setzero_ps();
        for (; e + 16 <= n; e += 16) {
            const __m512 v = _mm512_i32gather_ps(_mm512_loadu_si512(index + e), s, 4);
            acc = _mm512_fmadd_ps(v, _mm512_loadu_ps(value + e), acc);
        }
        sum = _mm512_reduce_add_ps(acc);
    }
#endif
    for (; e < n; ++e) sum = fused(value[e], s[index[e]], sum);
    return sum;
}

/// out[index[e]] += c * value[e], e < n; distinct indices, so four may be in flight.
template <class T>
DEEPL0_INLINE void scatter_add(T* out, const int32_t* index, const T* value, int64_t n, T c) {
    int64_t e = 0;
    for (; e + 4 <= n; e += 4) {
        T v[4];
        for (int l = 0; l < 4; ++l) v[l] = fused(c, value[e + l], out[index[e + l]]);
        for (int l = 0; l < 4; ++l) out[index[e + l]] = v[l];
    }
    for (; e < n; ++e) out[index[e]] = fused(c, value[e], out[index[e]]);
}

template <class T>
void product_on_support_impl(UnitLists<T> lists, int64_t units, const T* s, int64_t ld,
                             SparseRows<T> at, T* out) {
    for (int64_t i = 0; i < units; ++i) {
        for (int32_t k = lists.start[i]; k < lists.start[i + 1]; ++k) {
            const int64_t r = lists.row[k], begin = at.begin(r);
            add_gathered(out + begin, s + i * ld, at.index + begin, at.end(r) - begin,
                         lists.coefficient[k]);
        }
    }
}

template <class T>
void product_on_lists_impl(UnitLists<T> lists, int64_t p, const T* st, SparseRows<T> du, T* out) {
    for (int64_t j = 0; j < p; ++j) {
        for (int32_t k = lists.start[j]; k < lists.start[j + 1]; ++k) {
            const int64_t r = lists.row[k], begin = du.begin(r);
            out[lists.place[k]] =
                dot_gathered(du.value + begin, st + j * p, du.index + begin, du.end(r) - begin);
        }
    }
}

template <class T>
void outer_impl(UnitLists<T> lists, int64_t begin, int64_t end, SparseRows<T> z, T* out,
                int64_t ld) {
    for (int64_t i = begin; i < end; ++i) {
        for (int32_t k = lists.start[i]; k < lists.start[i + 1]; ++k) {
            const int64_t r = lists.row[k], first = z.begin(r);
            scatter_add(out + i * ld, z.index + first, z.value + first, z.end(r) - first,
                        lists.coefficient[k]);
        }
    }
}

template <class T>
void combine_impl(UnitLists<T> lists, int64_t begin, int64_t end, const T* x, int64_t ldx,
                  int64_t n, T* out) {
    for (int64_t i = begin; i < end; ++i) {
        const int32_t first = lists.start[i];
        if (first == lists.start[i + 1]) continue;
        gather_sum(out + i * n, static_cast<const T*>(out + i * n), x, ldx,
                   static_cast<const T*>(lists.coefficient + first),
                   static_cast<const int32_t*>(lists.row + first), lists.start[i + 1] - first, n);
    }
}

template <class T>
void gather_impl(SparseRows<T> z, int64_t rows, const T* w, int64_t ldw, int64_t n, const T* base,
                 T* out, int64_t ldo) {
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t begin = z.begin(r);
        gather_sum(out + r * ldo, base ? base + r * ldo : nullptr, w, ldw, z.value + begin,
                   z.index + begin, z.end(r) - begin, n);
    }
}

template <class T>
void gather_columns_impl(SparseRows<T> z, int64_t rows, const T* wt, int64_t p, int64_t n,
                         const T* base, T* out, int64_t ldo) {
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t begin = z.begin(r);
        gather_columns(out + r * ldo, base ? base + r * ldo : nullptr, wt, p, z.value + begin,
                       z.index + begin, z.end(r) - begin, n);
    }
}

template <class T>
constexpr UnitKernels<T> kUnits = {group_impl<T>,
                                   product_on_support_impl<T>,
                                   product_on_lists_impl<T>,
                                   outer_impl<T>,
                                   combine_impl<T>,
                                   gather_impl<T>,
                                   gather_columns_impl<T>,
                                   nonzeros<T>};

}  // namespace

extern const UnitKernels<float> unit_f32;
extern const UnitKernels<double> unit_f64;
const UnitKernels<float> unit_f32 = kUnits<float>;
const UnitKernels<double> unit_f64 = kUnits<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(UnitKernels, unit)
#endif

}  // namespace deepl0
