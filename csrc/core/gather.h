// Gather-sum over rows, the kernel that replaces the product S z of an M-sparse z; shared by
// encode, decode and stage. For files that are compiled once per ISA level.
#pragma once

#include <cstdint>
#include <utility>

#include "isa.h"

#if DEEPL0_ISA_LEVEL > 0
#include <immintrin.h>
#endif

namespace deepl0::DEEPL0_ISA {

#if DEEPL0_ISA_LEVEL == 2
inline constexpr int kVectorBytes = 64, kAccumulators = 16;
#elif DEEPL0_ISA_LEVEL == 1
inline constexpr int kVectorBytes = 32, kAccumulators = 8;
#else
inline constexpr int kVectorBytes = 16, kAccumulators = 8;
#endif

/// Unaligned vector of BYTES bytes (vector extension of GCC and Clang).
template <class T, int BYTES = kVectorBytes>
struct Vector {
    typedef T type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
};

// Fused multiply-add of whole vectors where the level has it, whatever the compiler may contract.
#define DEEPL0_FMA(BYTES, T, Register, intrinsic)                                                  \
    DEEPL0_INLINE Vector<T, BYTES>::type fused(Vector<T, BYTES>::type a, Vector<T, BYTES>::type b, \
                                               Vector<T, BYTES>::type c) {                         \
        return (Vector<T, BYTES>::type)intrinsic((Register)a, (Register)b, (Register)c);           \
    }
#if DEEPL0_ISA_LEVEL == 2
DEEPL0_FMA(64, float, __m512, _mm512_fmadd_ps)
DEEPL0_FMA(64, double, __m512d, _mm512_fmadd_pd)
#endif
#if DEEPL0_ISA_LEVEL >= 1
DEEPL0_FMA(32, float, __m256, _mm256_fmadd_ps)
DEEPL0_FMA(32, double, __m256d, _mm256_fmadd_pd)
DEEPL0_FMA(16, float, __m128, _mm_fmadd_ps)
DEEPL0_FMA(16, double, __m128d, _mm_fmadd_pd)
DEEPL0_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEEPL0_INLINE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
/// a b + c
template <class V>
DEEPL0_INLINE V fused(V a, V b, V c) {
    return a * b + c;
}
#endif
#undef DEEPL0_FMA

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DEEPL0_SHUFFLES 1
#endif
#endif

#ifdef DEEPL0_SHUFFLES
template <class T, int BYTES, int... L>
DEEPL0_INLINE T sum_of_halves(typename Vector<T, BYTES>::type v, std::integer_sequence<int, L...>);
#endif

/// The sum of the lanes, by halves.
template <class T, int BYTES>
DEEPL0_INLINE T sum_of_lanes(typename Vector<T, BYTES>::type v) {
    constexpr int N = BYTES / int(sizeof(T));
#ifdef DEEPL0_SHUFFLES
    if constexpr (N > 2)
        return sum_of_halves<T, BYTES>(v, std::make_integer_sequence<int, N / 2>{});
#endif
    T sum = v[0];
    for (int i = 1; i < N; ++i) sum += v[i];
    return sum;
}

#ifdef DEEPL0_SHUFFLES
template <class T, int BYTES, int... L>
DEEPL0_INLINE T sum_of_halves(typename Vector<T, BYTES>::type v, std::integer_sequence<int, L...>) {
    return sum_of_lanes<T, BYTES / 2>(__builtin_shufflevector(v, v, L...) +
                                      __builtin_shufflevector(v, v, (int(sizeof...(L)) + L)...));
}
#endif

/// <x, w>, n terms. Four sums hide the latency of the fma.
template <class T>
DEEPL0_INLINE T dot(const T* x, const T* w, int64_t n) {
    using V = typename Vector<T>::type;
    constexpr int64_t W = kVectorBytes / int64_t(sizeof(T));
    const auto at = [](const T* p) { return V(*reinterpret_cast<const V*>(p)); };
    V a = {}, b = {}, c = {}, d = {};
    const T* const end = x + n;
    for (const T* const last = x + n / (4 * W) * (4 * W); x < last; x += 4 * W, w += 4 * W) {
        a = fused(at(x), at(w), a);
        b = fused(at(x + W), at(w + W), b);
        c = fused(at(x + 2 * W), at(w + 2 * W), c);
        d = fused(at(x + 3 * W), at(w + 3 * W), d);
    }
    for (; x + W <= end; x += W, w += W) a = fused(at(x), at(w), a);
    T sum = sum_of_lanes<T, kVectorBytes>((a + b) + (c + d));
    for (; x < end; ++x, ++w) sum = fused(*x, *w, sum);
    return sum;
}

/// One chunk of a row, N vectors that stay in registers over all m terms.
template <class T, int BYTES, int N, class Index>
DEEPL0_INLINE void gather_chunk(T* u, const T* base, const T* rows, int64_t ld, const T* v,
                                const Index* idx, int64_t m) {
    using V = typename Vector<T, BYTES>::type;
    V acc[N];
    for (int i = 0; i < N; ++i) acc[i] = base ? reinterpret_cast<const V*>(base)[i] : V{};
    for (int64_t j = 0; j < m; ++j) {
        const V* row = reinterpret_cast<const V*>(rows + int64_t(idx[j]) * ld);
        const V c = v[j] - V{};  // in all lanes
        for (int i = 0; i < N; ++i) acc[i] = fused(V(row[i]), c, acc[i]);
    }
    for (int i = 0; i < N; ++i) reinterpret_cast<V*>(u)[i] = acc[i];
}

/// u[c] = base[c] + sum_j v[j] * rows[idx[j] * ld + c], c in [0, n). base may be null (zeros) or u.
/// Every column adds its terms in the order of j. Flops 2 m n; reads m n sizeof(T) bytes of rows:
/// bound by the cache that holds them (150 GB/s measured from L2; prefetching gained nothing).
template <class T, class Index>
DEEPL0_INLINE void gather_sum(T* u, const T* base, const T* rows, int64_t ld, const T* v,
                              const Index* idx, int64_t m, int64_t n) {
    constexpr int64_t W = kVectorBytes / int(sizeof(T)), W16 = 16 / int(sizeof(T));
    int64_t c = 0;
    const auto at = [&](int64_t k) { return base ? base + k : nullptr; };
    for (; c + kAccumulators * W <= n; c += kAccumulators * W)
        gather_chunk<T, kVectorBytes, kAccumulators>(u + c, at(c), rows + c, ld, v, idx, m);
    for (; c + 4 * W <= n; c += 4 * W)
        gather_chunk<T, kVectorBytes, 4>(u + c, at(c), rows + c, ld, v, idx, m);
    for (; c + W <= n; c += W)
        gather_chunk<T, kVectorBytes, 1>(u + c, at(c), rows + c, ld, v, idx, m);
    for (; c + W16 <= n; c += W16) gather_chunk<T, 16, 1>(u + c, at(c), rows + c, ld, v, idx, m);
    for (; c < n; ++c) {
        T acc = base ? base[c] : T(0);
        for (int64_t j = 0; j < m; ++j) acc = fused(v[j], rows[int64_t(idx[j]) * ld + c], acc);
        u[c] = acc;
    }
}

/// N rows of gather_columns.
template <int N, class T, class Index>
DEEPL0_INLINE void gather_rows(T* u, const T* base, const T* s, int64_t ld, const T* v,
                               const Index* idx, int64_t m) {
    T sum[N];
    for (int r = 0; r < N; ++r) sum[r] = base ? base[r] : T(0);
    for (int64_t j = 0; j < m; ++j)
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) sum[r] = fused(v[j], s[r * ld + idx[j]], sum[r]);
    for (int r = 0; r < N; ++r) u[r] = sum[r];
}

/// The same with the matrix transposed: u[i] = base[i] + sum_j v[j] * s[i * ld + idx[j]], i in [0,
/// n); base may be null. Eight rows at a time keep enough scattered loads in flight; hardware
/// gathers and prefetching gained nothing.
template <class T, class Index>
DEEPL0_INLINE void gather_columns(T* u, const T* base, const T* s, int64_t ld, const T* v,
                                  const Index* idx, int64_t m, int64_t n) {
    const auto at = [&](int64_t i) { return base ? base + i : nullptr; };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) gather_rows<8>(u + i, at(i), s + i * ld, ld, v, idx, m);
    for (; i < n; ++i) gather_rows<1>(u + i, at(i), s + i * ld, ld, v, idx, m);
}

}  // namespace deepl0::DEEPL0_ISA
