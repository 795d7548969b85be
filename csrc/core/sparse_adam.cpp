#include "sparse_adam.h"

#include <cstring>
#include <type_traits>

#include "gather.h"
#include "kernel_table.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

template <class T, int BYTES>
DEEPL0_INLINE typename Vector<T, BYTES>::type root_of(typename Vector<T, BYTES>::type v) {
    typename Vector<T, BYTES>::type r;
#if DEEPL0_ISA_LEVEL == 2
    if constexpr (BYTES == 64 && sizeof(T) == 4) return decltype(r)(_mm512_sqrt_ps(__m512(v)));
    if constexpr (BYTES == 64 && sizeof(T) == 8) return decltype(r)(_mm512_sqrt_pd(__m512d(v)));
#endif
#if DEEPL0_ISA_LEVEL == 1
    if constexpr (BYTES == 32 && sizeof(T) == 4) return decltype(r)(_mm256_sqrt_ps(__m256(v)));
    if constexpr (BYTES == 32 && sizeof(T) == 8) return decltype(r)(_mm256_sqrt_pd(__m256d(v)));
#endif
    for (int i = 0; i < BYTES / int(sizeof(T)); ++i)
        r[i] = sizeof(T) == 4 ? T(__builtin_sqrtf(float(v[i]))) : T(__builtin_sqrt(double(v[i])));
    return r;
}

/// Whether every entry is 0, of either sign. A NaN is not, nor is a subnormal in any mode.
template <class T>
DEEPL0_INLINE bool is_zero(const T* g, int64_t n) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    using V = typename Vector<Bits>::type;
    constexpr int64_t W = kVectorBytes / int64_t(sizeof(T));
    const auto other = [](Bits b) { return Bits(b << 1) != 0; };
    int64_t c = 0;
    for (; c + 4 * W <= n; c += 4 * W) {  // an entry that is not 0 comes early
        const V* at = reinterpret_cast<const V*>(g + c);
        const V some = (V(at[0]) | V(at[1])) | (V(at[2]) | V(at[3]));
        Bits all = 0;
        for (int64_t i = 0; i < W; ++i) all |= some[i];
        if (other(all)) return false;
    }
    for (; c < n; ++c) {
        Bits one;
        memcpy(&one, g + c, sizeof one);
        if (other(one)) return false;
    }
    return true;
}

/// The entries [c, c + W) of a row, W those of a vector.
template <class T, int BYTES>
DEEPL0_INLINE void step_vector(const AdamStep<T>& by, const T* g, T* w, T* a, T* b, T along) {
    using V = typename Vector<T, BYTES>::type;
    const auto at = [](const T* p) { return V(*reinterpret_cast<const V*>(p)); };
    const auto all = [](T x) { return x - V{}; };
    const V gv = fused(all(-along), at(w), at(g));
    const V av = fused(all(T(1) - by.beta1), gv - at(a), at(a));
    const V bv = fused(all(T(1) - by.beta2) * gv, gv, all(by.beta2) * at(b));
    const V under = root_of<T, BYTES>(bv) / all(by.root) + all(by.eps);
    *reinterpret_cast<V*>(a) = av;
    *reinterpret_cast<V*>(b) = bv;
    *reinterpret_cast<V*>(w) = at(w) - all(by.step_size) * av / under;
}

template <class T>
DEEPL0_INLINE void step_row(const AdamStep<T>& by, int64_t n, const T* g, T* w, T* a, T* b) {
    constexpr int64_t W = kVectorBytes / int64_t(sizeof(T));
    T along = 0;
    if (by.unit_norm) {
        const T squared = dot<T>(w, w, n);
        along = squared > T(0) ? dot<T>(g, w, n) / squared : T(0);
    }
    int64_t c = 0;
    for (; c + W <= n; c += W) step_vector<T, kVectorBytes>(by, g + c, w + c, a + c, b + c, along);
    if (c < n) {  // the same in a vector of its own: no entry depends on where its row ends
        T rest[4][W] = {};
        const T* const from[4] = {g + c, w + c, a + c, b + c};
        for (int k = 0; k < 4; ++k)
            for (int64_t i = 0; i < n - c; ++i) rest[k][i] = from[k][i];
        step_vector<T, kVectorBytes>(by, rest[0], rest[1], rest[2], rest[3], along);
        T* const to[4] = {nullptr, w + c, a + c, b + c};
        for (int k = 1; k < 4; ++k)
            for (int64_t i = 0; i < n - c; ++i) to[k][i] = rest[k][i];
    }
    if (!by.unit_norm) return;
    const T squared = dot<T>(w, w, n);
    if (!(squared > T(0))) return;
    const T norm =
        sizeof(T) == 4 ? T(__builtin_sqrtf(float(squared))) : T(__builtin_sqrt(double(squared)));
    for (int64_t i = 0; i < n; ++i) w[i] /= norm;
}

template <class T>
void step_impl(AdamStep<T> by, int64_t rows, int64_t n, const T* g, T* w, T* a, T* b) {
    for (int64_t r = 0; r < rows; ++r, g += n, w += n, a += n, b += n)
        if (!is_zero(g, n)) step_row(by, n, g, w, a, b);
}

template <class T>
constexpr SparseAdamKernels<T> kSparseAdam = {step_impl<T>};

}  // namespace

extern const SparseAdamKernels<float> sparse_adam_f32;
extern const SparseAdamKernels<double> sparse_adam_f64;
const SparseAdamKernels<float> sparse_adam_f32 = kSparseAdam<float>;
const SparseAdamKernels<double> sparse_adam_f64 = kSparseAdam<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(SparseAdamKernels, sparse_adam)
#endif

}  // namespace deepl0
