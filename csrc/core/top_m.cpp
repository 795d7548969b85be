#include "top_m.h"

#include <type_traits>

#include "kernel_table.h"
#include "select.h"

namespace deepl0 {
namespace DEEPL0_ISA {

namespace {

/// Byte offsets of the parts of a workspace.
struct Layout {
    size_t scratch, row, wide, mask, idx, val, total = 64;

    Layout(DType dtype, int64_t p, int64_t m) {
        const size_t n = size_t(p), kept = size_t(m + kSelectSlack);
        const bool f32 = dtype == DType::f32;
        scratch = take(size_t(cut_scratch(p)) * 4);
        row = take(f32 ? 0 : n * 4);                   // the row as floats of the same order
        wide = take(dtype == DType::f64 ? n * 8 : 0);  // keys that tie in their upper part
        mask = take(f32 ? 0 : (n + 7) / 8);            // the choice of top_m
        idx = take(f32 ? kept * 4 : 0);
        val = take(f32 ? kept * 4 : 0);
    }
    size_t take(size_t bytes) {
        const size_t at = total - 64;
        total += (bytes + 63) / 64 * 64;
        return at;
    }
};

struct Workspace {
    int32_t* scratch;
    float* row;
    int64_t* wide;
    uint8_t* mask;
    int32_t* idx;
    float* val;

    Workspace(DType dtype, int64_t p, int64_t m, void* memory) {
        const Layout at(dtype, p, m);
        char* base = static_cast<char*>(memory);
        base += -reinterpret_cast<uintptr_t>(memory) & 63;
        scratch = reinterpret_cast<int32_t*>(base + at.scratch);
        row = reinterpret_cast<float*>(base + at.row);
        wide = reinterpret_cast<int64_t*>(base + at.wide);
        mask = reinterpret_cast<uint8_t*>(base + at.mask);
        idx = reinterpret_cast<int32_t*>(base + at.idx);
        val = reinterpret_cast<float*>(base + at.val);
    }
};

/// Whether x is > 0 or a NaN, by its bits (see not_negative in simd.h).
template <typename S>
DEEPL0_INLINE bool is_positive(S x) {
    using Bits = std::conditional_t<sizeof(S) == 8, int64_t, int16_t>;
    const Bits minus_inf = sizeof(S) == 8                     ? Bits(uint64_t(0xfff) << 52)
                           : std::is_same<S, bfloat16>::value ? Bits(0xff80)
                                                              : Bits(0xfc00);
    const Bits bits = bit_cast<Bits>(x);
    return bits != 0 && bits > minus_inf;
}

// ---- the chosen entries of a row as bits, and for float rows as a dense row

/// The bits of the kept lanes that pass a gradient: of nonnegative codes those that are not 0.
template <bool Positive>
DEEPL0_INLINE uint32_t passing(Mask kept, I32 k) {
    return bits(Positive ? mask_and(kept, gt(k, broadcast(int32_t(0)))) : kept);
}

template <bool Positive, bool Ties, bool Dense>
DEEPL0_INLINE void write_bits(const float* u, int64_t p, const Cut& cut, float* out,
                              uint8_t* mask) {
    Keeper<Ties> keeper(cut);
    int64_t i = 0;
    for (; i + 16 <= p; i += 16) {
        uint32_t word = 0;
        for (int v = 0; v < 16; v += kLanes) {
            const F32 x = candidate<Positive>(load(u + i + v));
            const I32 k = key(x);
            const Mask kept = keeper(k);
            if (Dense) store(out + i + v, keep(kept, x));
            word |= passing < Positive && Dense > (kept, k) << v;
        }
        const uint16_t low = uint16_t(word);
        memcpy(mask + i / 8, &low, 2);
    }
    uint32_t word = 0;
    const int64_t start = i;
    for (; i < p; i += kLanes) {
        const int n = int(p - i < kLanes ? p - i : kLanes);
        const F32 x = candidate<Positive>(load_first(u + i, n));
        const I32 k = key(x);
        const Mask kept = mask_and(keeper(k), first(n));
        if (Dense) store_first(out + i, keep(kept, x), n);
        word |= passing < Positive && Dense > (kept, k) << (i - start);
    }
    for (int64_t byte = start / 8; byte < (p + 7) / 8; ++byte, word >>= 8) {
        mask[byte] = uint8_t(word);
    }
}

template <bool Positive, bool Dense>
DEEPL0_NOINLINE void write_bits_ties(const float* u, int64_t p, Cut cut, float* out,
                                     uint8_t* mask) {
    write_bits<Positive, true, Dense>(u, p, cut, out, mask);
}

template <bool Positive, bool Dense>
DEEPL0_INLINE void choose(const float* u, int64_t p, int64_t m, float* out, uint8_t* mask,
                          const Workspace& ws) {
    const Cut cut = find_cut<Positive>(u, p, m, ws.scratch);
    if (__builtin_expect(cut.ties < 0, 1))
        write_bits<Positive, false, Dense>(u, p, cut, out, mask);
    else
        write_bits_ties<Positive, Dense>(u, p, cut, out, mask);
}

// 16-bit types: widening keeps the order and the ties.
template <bool Positive, typename S>
DEEPL0_INLINE void choose_bits(const S* u, int64_t p, int64_t m, uint8_t* mask,
                               const Workspace& ws) {
    int64_t i = 0;
    for (; i + kLanes <= p; i += kLanes) store(ws.row + i, load(u + i));
    if (i < p) store_first(ws.row + i, load_first(u + i, int(p - i)), int(p - i));
    choose<Positive, false>(ws.row, p, m, nullptr, mask, ws);
}

// float64: a float search on the upper 30 bits of the 63-bit key (NaNs made one, above inf), then a
// search on the rest among the entries that share the decisive upper part.
constexpr int kLowBits = 33;
constexpr int64_t kWideNan = int64_t(0x3ff80001) << kLowBits;

template <bool Positive>
DEEPL0_INLINE int64_t wide_key(double x) {
    if (Positive && !is_positive(x)) return 0;
    const int64_t k = bit_cast<int64_t>(x) & INT64_MAX;
    return k < kWideNan ? k : kWideNan;
}

template <bool Positive>
DEEPL0_INLINE void choose_bits(const double* u, int64_t p, int64_t m, uint8_t* mask,
                               const Workspace& ws) {
    if (m <= 0) {  // find_cut's key for "none" is no key of ours
        memset(mask, 0, size_t(p + 7) / 8);
        return;
    }
    int32_t* upper = reinterpret_cast<int32_t*>(ws.row);
    for (int64_t i = 0; i < p; ++i) upper[i] = int32_t(wide_key<Positive>(u[i]) >> kLowBits);
    const Cut cut = find_cut<false>(ws.row, p, m, ws.scratch);
    // As in Cut: keep keys > lo and the first `ties` of those == lo, or if ties < 0 all >= lo.
    int64_t lo = int64_t(cut.key) << kLowBits, ties = cut.ties;
    if (ties > 0) {
        int64_t n = 0;
        for (int64_t i = 0; i < p; ++i) {
            if (upper[i] == cut.key) ws.wide[n++] = wide_key<Positive>(u[i]);
        }
        int64_t hi = lo + (int64_t(1) << kLowBits), at_lo = n, at_hi = 0;
        while (at_lo != cut.ties && hi - lo > 1) {
            const int64_t t = lo + (hi - lo) / 2;
            int64_t above = 0;
            for (int64_t i = 0; i < n; ++i) above += ws.wide[i] >= t;
            if (above >= cut.ties) {
                lo = t, at_lo = above;
            } else {
                hi = t, at_hi = above;
            }
        }
        ties = at_lo == cut.ties ? -1 : cut.ties - at_hi;
    }
    const int64_t all = ties < 0 ? lo : lo + 1;
    for (int64_t i = 0; i < p; i += 8) {
        const int n = int(p - i < 8 ? p - i : 8);
        uint32_t byte = 0;
        for (int b = 0; b < n; ++b) byte |= uint32_t(wide_key<Positive>(u[i + b]) >= all) << b;
        for (int b = 0; b < n && ties > 0; ++b) {
            if (wide_key<Positive>(u[i + b]) != lo) continue;
            byte |= 1u << b;
            --ties;
        }
        mask[i / 8] = uint8_t(byte);
    }
}

// ---- rows out of bits

template <typename T>
DEEPL0_INLINE void apply_bits(const T* u, const uint8_t* mask, int64_t p, T* out) {
    for (int64_t i = 0; i < p; i += 8) {
        const int n = int(p - i < 8 ? p - i : 8);
        const uint32_t byte = mask[i / 8];
        for (int b = 0; b < n; ++b) out[i + b] = (byte >> b & 1) ? u[i + b] : T(0);
    }
}

DEEPL0_INLINE void apply_bits(const float* u, const uint8_t* mask, int64_t p, float* out) {
    int64_t i = 0;
    for (; i + 16 <= p; i += 16) {
        const uint32_t word = mask[i / 8] | uint32_t(mask[i / 8 + 1]) << 8;
        for (int v = 0; v < 16; v += kLanes) {
            store(out + i + v, keep(mask_of(word >> v), load(u + i + v)));
        }
    }
    for (; i < p; ++i) out[i] = (mask[i / 8] >> (i % 8) & 1) ? u[i] : 0.0f;
}

/// Clears the bits of entries that are not positive.
template <typename S>
DEEPL0_INLINE void keep_positive_bits(const S* u, int64_t p, uint8_t* mask) {
    for (int64_t i = 0; i < p; i += 8) {
        if (!mask[i / 8]) continue;
        const int n = int(p - i < 8 ? p - i : 8);
        for (int b = 0; b < n; ++b) mask[i / 8] &= uint8_t(~(!is_positive(u[i + b]) << b));
    }
}

template <bool Positive, typename S, typename T>
DEEPL0_INLINE void gather_bits(const S* u, const uint8_t* mask, int64_t p, T* values,
                               int64_t* indices) {
    int64_t n = 0;
    for (int64_t i = 0; i < p; i += 64) {
        uint64_t word = 0;
        for (int64_t byte = i / 8; byte < (p + 7) / 8 && byte < i / 8 + 8; ++byte) {
            word |= uint64_t(mask[byte]) << (byte * 8 - i);
        }
        for (; word; word &= word - 1, ++n) {
            const int64_t j = i + __builtin_ctzll(word);
            indices[n] = j;
            values[n] = Positive && !is_positive(u[j]) ? T(0) : reinterpret_cast<const T*>(u)[j];
        }
    }
}

// ---- rows of a call, per element type

/// Fetches row r + 1 while row r is searched: its first pass would otherwise wait for memory. Long
/// rows are left to the hardware.
DEEPL0_INLINE void prefetch_next(const float* row, int64_t stride, int64_t p, bool last) {
    if (last || p > 1024) return;
    for (int64_t i = 0; i < p; i += 16) __builtin_prefetch(row + stride + i);
}

template <bool Positive, typename S, typename Bits>
void top_m_rows(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m, void* values,
                int64_t* indices, int64_t row_begin, int64_t row_end, void* workspace) {
    const Workspace ws(dtype, p, m, workspace);
    for (int64_t r = row_begin; r < row_end; ++r) {
        const S* row = static_cast<const S*>(u) + r * u_stride;
        choose_bits<Positive>(row, p, m, ws.mask, ws);
        gather_bits<Positive>(row, ws.mask, p, static_cast<Bits*>(values) + r * m, indices + r * m);
    }
}

template <bool Positive>
void top_m_float_rows(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m,
                      void* values, int64_t* indices, int64_t row_begin, int64_t row_end,
                      void* workspace) {
    const Workspace ws(dtype, p, m, workspace);
    for (int64_t r = row_begin; r < row_end; ++r) {
        const float* row = static_cast<const float*>(u) + r * u_stride;
        prefetch_next(row, u_stride, p, r + 1 == row_end);
        select_top_m<Positive>(row, p, m, ws.scratch, ws.idx, ws.val);
        float* value = static_cast<float*>(values) + r * m;
        int64_t* index = indices + r * m;
        for (int64_t i = 0; i < m; ++i) {
            index[i] = ws.idx[i];
            memcpy(value + i, ws.val + i, 4);
        }
    }
}

template <bool Positive, typename S, typename Bits>
void keep_top_m_rows(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m, void* out,
                     int64_t out_stride, uint8_t* mask, int64_t row_begin, int64_t row_end,
                     void* workspace) {
    const Workspace ws(dtype, p, m, workspace);
    for (int64_t r = row_begin; r < row_end; ++r) {
        const S* row = static_cast<const S*>(u) + r * u_stride;
        uint8_t* row_mask = mask + r * ((p + 7) / 8);
        choose_bits<Positive>(row, p, m, row_mask, ws);
        if (Positive) keep_positive_bits(row, p, row_mask);
        apply_bits(reinterpret_cast<const Bits*>(row), row_mask, p,
                   static_cast<Bits*>(out) + r * out_stride);
    }
}

template <bool Positive>
void keep_top_m_float_rows(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m,
                           void* out, int64_t out_stride, uint8_t* mask, int64_t row_begin,
                           int64_t row_end, void* workspace) {
    const Workspace ws(dtype, p, m, workspace);
    for (int64_t r = row_begin; r < row_end; ++r) {
        const float* row = static_cast<const float*>(u) + r * u_stride;
        prefetch_next(row, u_stride, p, r + 1 == row_end);
        choose<Positive, true>(row, p, m, static_cast<float*>(out) + r * out_stride,
                               mask + r * ((p + 7) / 8), ws);
    }
}

template <typename T>
void apply_mask_rows(const void* u, int64_t u_stride, const uint8_t* mask, int64_t p, void* out,
                     int64_t out_stride, int64_t row_begin, int64_t row_end) {
    for (int64_t r = row_begin; r < row_end; ++r) {
        apply_bits(static_cast<const T*>(u) + r * u_stride, mask + r * ((p + 7) / 8), p,
                   static_cast<T*>(out) + r * out_stride);
    }
}

template <bool Positive>
constexpr auto top_m_rows_of(DType dtype) {
    return dtype == DType::f32   ? top_m_float_rows<Positive>
           : dtype == DType::f64 ? top_m_rows<Positive, double, double>
           : dtype == DType::f16 ? top_m_rows<Positive, half, uint16_t>
                                 : top_m_rows<Positive, bfloat16, uint16_t>;
}

void top_m(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m, bool positive,
           void* values, int64_t* indices, int64_t row_begin, int64_t row_end, void* workspace) {
    const auto rows = positive ? top_m_rows_of<true>(dtype) : top_m_rows_of<false>(dtype);
    rows(dtype, u, u_stride, p, m, values, indices, row_begin, row_end, workspace);
}

template <bool Positive>
constexpr auto keep_top_m_rows_of(DType dtype) {
    return dtype == DType::f32   ? keep_top_m_float_rows<Positive>
           : dtype == DType::f64 ? keep_top_m_rows<Positive, double, double>
           : dtype == DType::f16 ? keep_top_m_rows<Positive, half, uint16_t>
                                 : keep_top_m_rows<Positive, bfloat16, uint16_t>;
}

void keep_top_m(DType dtype, const void* u, int64_t u_stride, int64_t p, int64_t m, bool positive,
                void* out, int64_t out_stride, uint8_t* mask, int64_t row_begin, int64_t row_end,
                void* workspace) {
    const auto rows = positive ? keep_top_m_rows_of<true>(dtype) : keep_top_m_rows_of<false>(dtype);
    rows(dtype, u, u_stride, p, m, out, out_stride, mask, row_begin, row_end, workspace);
}

void apply_mask(DType dtype, const void* u, int64_t u_stride, const uint8_t* mask, int64_t p,
                void* out, int64_t out_stride, int64_t row_begin, int64_t row_end) {
    const auto rows = dtype == DType::f32   ? apply_mask_rows<float>
                      : dtype == DType::f64 ? apply_mask_rows<double>
                                            : apply_mask_rows<uint16_t>;
    rows(u, u_stride, mask, p, out, out_stride, row_begin, row_end);
}

}  // namespace

extern const TopMKernels top_m_table;
const TopMKernels top_m_table = {top_m, keep_top_m, apply_mask};

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLE(TopMKernels, top_m)

namespace {

/// One row of unpool: the position of the first bad index or -1. seen: all zero bits, left so.
template <typename T>
int64_t unpool_row(const T* values, const int64_t* indices, int64_t m, int64_t size, T* out,
                   uint64_t* seen) {
    int64_t ascending = 0, previous = -1;
    while (ascending < m && indices[ascending] > previous && indices[ascending] < size) {
        previous = indices[ascending++];
    }
    int64_t bad = -1;
    if (ascending < m) {
        int64_t i = 0;
        for (; i < m; ++i) {
            const uint64_t j = uint64_t(indices[i]);  // negative: huge
            if (j >= uint64_t(size) || (seen[j / 64] >> (j % 64) & 1)) break;
            seen[j / 64] |= uint64_t(1) << (j % 64);
        }
        if (i < m) bad = i;
        while (i-- > 0) seen[indices[i] / 64] = 0;
    }
    if (bad >= 0) return bad;
    memset(out, 0, size_t(size) * sizeof(T));
    for (int64_t i = 0; i < m; ++i) out[indices[i]] = values[i];
    return -1;
}

template <typename T>
int64_t unpool_rows(const void* values, const int64_t* indices, int64_t m, int64_t size, void* out,
                    int64_t row_begin, int64_t row_end, uint64_t* seen) {
    memset(seen, 0, unpool_workspace_bytes(size));
    for (int64_t r = row_begin; r < row_end; ++r) {
        const int64_t bad = unpool_row(static_cast<const T*>(values) + r * m, indices + r * m, m,
                                       size, static_cast<T*>(out) + r * size, seen);
        if (bad >= 0) return r * m + bad;
    }
    return -1;
}

}  // namespace

size_t top_m_workspace_bytes(DType dtype, int64_t p, int64_t m) {
    return scalar::Layout(dtype, p, m).total;
}

size_t unpool_workspace_bytes(int64_t size) { return size_t(size + 63) / 64 * 8; }

int64_t unpool(DType dtype, const void* values, const int64_t* indices, int64_t m, int64_t size,
               void* out, int64_t row_begin, int64_t row_end, void* workspace) {
    const auto rows = dtype == DType::f64   ? unpool_rows<uint64_t>
                      : dtype == DType::f32 ? unpool_rows<uint32_t>
                                            : unpool_rows<uint16_t>;
    return rows(values, indices, m, size, out, row_begin, row_end,
                static_cast<uint64_t*>(workspace));
}

#endif

}  // namespace deepl0
