#include "batch_top_m.h"

#include "kernel_table.h"
#include "select.h"
#include "sizes.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

static_assert(kBatchSlack >= kBlock && kBatchSlack >= kLanes, "what search and compress overwrite");

/// Entries that are looked at between two looks at the memory that is left.
constexpr int64_t kPiece = 4096;

// ---- keys: int32, of float64 int64

template <typename S>
struct KeyOf {
    using Key = int32_t;
    static constexpr int32_t kNan = kNanKey;
};
template <>
struct KeyOf<double> {
    using Key = int64_t;
    static constexpr int64_t kNan = 0x7ff0000000000001;
};

template <typename S>
using Key = typename KeyOf<S>::Key;

template <typename K>
struct Part {
    K* keys;
    int32_t* columns;
    int64_t* starts;

    explicit Part(const BatchPart& p)
        : keys(static_cast<K*>(p.keys)), columns(p.columns), starts(p.starts) {}
};

// ---- entries of a row that exceed a key

template <bool Positive, typename S>
DEEPL0_INLINE int64_t admit(const S* u, int64_t size, int64_t column, int32_t floor, int32_t* keys,
                            int32_t* columns) {
    constexpr int kTogether = 4;
    const I32 bound = broadcast(floor);
    int64_t n = 0, i = 0;
    const auto key_at = [&](int64_t j) { return clamp_nan(key_of<Positive>(load(u + j))); };
    const auto take = [&](I32 k, Mask above, int64_t j) {
        compress(keys + n, above, k);
        compress(columns + n, above, add(iota(), broadcast(int32_t(column + j))));
        n += count(above);
    };
    for (; i + kTogether * kLanes <= size; i += kTogether * kLanes) {
        I32 k[kTogether];
#pragma GCC unroll 4
        for (int v = 0; v < kTogether; ++v) k[v] = key_at(i + v * kLanes);
        if (!any(gt(max(max(k[0], k[1]), max(k[2], k[3])), bound))) continue;
#pragma GCC unroll 4
        for (int v = 0; v < kTogether; ++v) take(k[v], gt(k[v], bound), i + v * kLanes);
    }
    for (; i < size; i += kLanes) {
        const int left = int(smaller(size - i, kLanes));
        const I32 k = clamp_nan(key_of<Positive>(load_first(u + i, left)));
        take(k, mask_and(gt(k, bound), first(left)), i);
    }
    return n;
}

template <bool Positive>
DEEPL0_INLINE int64_t admit(const double* u, int64_t size, int64_t column, int64_t floor,
                            int64_t* keys, int32_t* columns) {
    int64_t n = 0;
    for (int64_t i = 0; i < size; ++i) {
        int64_t k = smaller(bit_cast<int64_t>(u[i]) & INT64_MAX, KeyOf<double>::kNan);
        if (Positive && u[i] <= 0) k = 0;
        keys[n] = k;
        columns[n] = int32_t(column + i);
        n += k > floor;
    }
    return n;
}

// ---- the cut

/// By bisection; what falls out of the bracket is dropped. Any number of keys.
template <typename K>
DEEPL0_NOINLINE BatchCut bisect(K* keys, int64_t n, int64_t m) {
    K lo = keys[0], hi = keys[0];
    for (int64_t i = 1; i < n; ++i) {
        lo = keys[i] < lo ? keys[i] : lo;
        hi = keys[i] > hi ? keys[i] : hi;
    }
    ++hi;
    while (n != m && hi - lo > 1) {
        const K middle = lo + (hi - lo) / 2;
        int64_t above = 0;
        for (int64_t i = 0; i < n; ++i) above += keys[i] >= middle;
        const bool up = above >= m;
        int64_t kept = 0;
        for (int64_t i = 0; i < n; ++i) {
            keys[kept] = keys[i];
            kept += (keys[i] >= middle) == up;
        }
        n = kept;
        (up ? lo : hi) = middle;
        if (!up) m -= above;
    }
    return {lo, n == m ? INT64_MAX : m};
}

/// None of the keys is below `least`.
DEEPL0_INLINE BatchCut cut_of(int32_t* keys, int64_t n, int64_t m, int32_t least) {
    if (n > INT32_MAX) return bisect(keys, n, m);  // the counters of search are 32-bit
    const Cut cut = search(keys, n, m, {least, kNanKey + 1, n, 0});
    return {cut.key, cut.ties < 0 ? INT64_MAX : cut.ties};
}
DEEPL0_INLINE BatchCut cut_of(int64_t* keys, int64_t n, int64_t m, int64_t) {
    return bisect(keys, n, m);
}

template <typename K>
void keep_part(Part<K> part, int64_t rows, BatchCut cut) {
    const K key = K(cut.key);
    int64_t n = 0, ties = cut.ties, from = 0;
    for (int64_t r = 0; r < rows; ++r) {
        part.starts[r] = n;
        const int64_t end = part.starts[r + 1];
        for (; from < end; ++from) {
            const K k = part.keys[from];
            const bool tie = k == key && ties > 0;
            part.keys[n] = k;
            part.columns[n] = part.columns[from];
            n += k > key || tie;
            ties -= tie;
        }
    }
    part.starts[rows] = n;
}

// ---- parts

template <bool Positive, typename S>
void collect_part(const S* u, int64_t u_stride, int64_t p, int64_t m, int64_t rows,
                  Part<Key<S>> part, Key<S>* scratch) {
    const int64_t capacity = batch_capacity(rows * p, m) - kBatchSlack;
    Key<S> floor = -1;
    int64_t n = 0;
    for (int64_t r = 0; r < rows; ++r) {
        part.starts[r] = n;
        for (int64_t column = 0; column < p; column += kPiece) {
            const int64_t size = smaller(p - column, kPiece);
            if (n + size > capacity) {  // then n > 2 m
                memcpy(scratch, part.keys, size_t(n) * sizeof(Key<S>));
                const BatchCut cut = cut_of(scratch, n, m, floor < 0 ? 0 : floor);
                part.starts[r + 1] = n;
                keep_part(part, r + 1, cut);
                floor = Key<S>(cut.key);
                n = m;
            }
            n += admit<Positive>(u + r * u_stride + column, size, column, floor, part.keys + n,
                                 part.columns + n);
        }
    }
    part.starts[rows] = n;
}

/// run(element of S, bits of S)
template <typename Run>
DEEPL0_INLINE auto by_type(DType dtype, Run run) {
    switch (dtype) {
        case DType::f32:
            return run(float(), uint32_t());
        case DType::f64:
            return run(double(), uint64_t());
        case DType::f16:
            return run(half(), uint16_t());
        default:
            return run(bfloat16(), uint16_t());
    }
}

void collect(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m, bool positive,
             int64_t row_begin, int64_t row_end, BatchPart part, void* scratch) {
    by_type(dtype, [&](auto element, auto) {
        using S = decltype(element);
        const auto run = positive ? collect_part<true, S> : collect_part<false, S>;
        run(static_cast<const S*>(u) + row_begin * u_stride, u_stride, p, m, row_end - row_begin,
            Part<Key<S>>(part), static_cast<Key<S>*>(scratch));
    });
}

BatchCut cut(DType dtype, void* keys, int64_t n, int64_t m) {
    return dtype == DType::f64 ? cut_of(static_cast<int64_t*>(keys), n, m, 0)
                               : cut_of(static_cast<int32_t*>(keys), n, m, 0);
}

int64_t tied(DType dtype, BatchPart part, int64_t rows, int64_t key) {
    return by_type(dtype, [&](auto element, auto) {
        using K = Key<decltype(element)>;
        const auto* keys = static_cast<const K*>(part.keys);
        int64_t n = 0;
        for (int64_t c = 0; c < part.starts[rows]; ++c) n += keys[c] == K(key);
        return n;
    });
}

void keep(DType dtype, BatchPart part, int64_t rows, BatchCut cut) {
    by_type(dtype,
            [&](auto element, auto) { keep_part(Part<Key<decltype(element)>>(part), rows, cut); });
}

void write(DType dtype, const void* u, int64_t u_stride, bool positive, int64_t row_begin,
           int64_t row_end, BatchPart part, int64_t begin, int64_t* offsets, void* values,
           int64_t* indices) {
    by_type(dtype, [&](auto element, auto bits) {
        using Bits = decltype(bits);
        const auto* keys = static_cast<const Key<decltype(element)>*>(part.keys);
        Bits* value = static_cast<Bits*>(values) + begin;
        for (int64_t r = row_begin; r < row_end; ++r) {
            const Bits* row = static_cast<const Bits*>(u) + r * u_stride;
            const int64_t from = part.starts[r - row_begin], end = part.starts[r - row_begin + 1];
            offsets[r] = begin + from;
            for (int64_t c = from; c < end; ++c) {
                value[c] = positive && keys[c] == 0 ? Bits(0) : row[part.columns[c]];
                indices[begin + c] = part.columns[c];
            }
        }
    });
}

}  // namespace

extern const BatchTopMKernels batch_top_m_table;
const BatchTopMKernels batch_top_m_table = {collect, cut, tied, keep, write};

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0

DEEPL0_TABLE(BatchTopMKernels, batch_top_m)

size_t batch_key_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

int64_t batch_capacity(int64_t entries, int64_t m) {
    return smaller(entries, 2 * m + scalar::kPiece) + kBatchSlack;
}

#endif

}  // namespace deepl0
