// Selection of the m entries of largest |u| in one float row: the primitive under top_m and the
// encoders. For ISA-compiled files only.
#pragma once

#include "simd.h"

namespace deepl0 {
namespace DEEPL0_ISA {

/// Keys that a search counts in one straight run; shorter lists are padded with -1.
constexpr int kBlock = 64;

/// Elements of int32 scratch that find_cut and select_top_m need for a row of p entries.
DEEPL0_INLINE int64_t cut_scratch(int64_t p) { return 2 * (p + 4 * kBlock); }

/// Entries that select_top_m may overwrite beyond the m-th of idx and val (contents unspecified).
constexpr int kSelectSlack = 16;

/// What to keep of a row: the entries with key > key and the first `ties` of those with key == key;
/// ties < 0 means every entry with key >= key, which are then exactly m. NaN keys count as kNanKey.
struct Cut {
    int32_t key;
    int64_t ties;
};

/// Interval of thresholds: at_lo >= m keys are >= lo, at_hi < m are >= hi.
struct Bracket {
    int32_t lo, hi;
    int64_t at_lo, at_hi;
};

struct Thresholds {
    int32_t t[3];  // ascending, lo < t <= hi
};

DEEPL0_INLINE Thresholds quarters(const Bracket& b) {
    const int32_t w = b.hi - b.lo;
    return {{b.lo + (w + 3) / 4, b.lo + (w + 1) / 2, b.hi - w / 4}};
}

/// Counts n keys (N if N > 0, else padded to a multiple of kBlock) at three thresholds and shrinks
/// the bracket. Without branches: the outcome is random.
template <int N>
DEEPL0_INLINE void narrow(Bracket& b, const int32_t* keys, int64_t n, int64_t m, Thresholds at) {
    constexpr int kStep = N > 0 ? N : kBlock;
    const I32 t0 = broadcast(at.t[0]), t1 = broadcast(at.t[1]), t2 = broadcast(at.t[2]);
    Counter n0, n1, n2;
    int64_t i = 0;
    do {
#pragma GCC unroll 16
        for (int v = 0; v < kStep; v += kLanes) {
            const I32 k = load(keys + i + v);
            n0.add(ge(k, t0));
            n1.add(ge(k, t1));
            n2.add(ge(k, t2));
        }
        i += kStep;
    } while (N == 0 && i < n);
    const int64_t c0 = n0.total(), c1 = n1.total(), c2 = n2.total();
    const bool s0 = c0 >= m, s1 = c1 >= m, s2 = c2 >= m;
    b.hi = s2 ? b.hi : s1 ? at.t[2] : s0 ? at.t[1] : at.t[0];
    b.at_hi = s2 ? b.at_hi : s1 ? c2 : s0 ? c1 : c0;
    b.lo = s2 ? at.t[2] : s1 ? at.t[1] : s0 ? at.t[0] : b.lo;
    b.at_lo = s2 ? c2 : s1 ? c1 : s0 ? c0 : b.at_lo;
}

DEEPL0_INLINE bool open(const Bracket& b, int64_t m) { return b.at_lo != m && b.hi - b.lo > 1; }

DEEPL0_INLINE void pad_block(int32_t* keys, int64_t n) {
    for (int i = 0; i < kBlock; i += kLanes) store(keys + n + i, broadcast(int32_t(-1)));
}

/// The first n set lanes of a mask.
DEEPL0_INLINE Mask first_set(Mask m, int64_t n) {
    uint32_t b = bits(m);
    for (int64_t extra = __builtin_popcount(b) - n; extra > 0; --extra) {
        b &= ~(0x80000000u >> __builtin_clz(b));
    }
    return mask_of(b);
}

/// Decides, vector by vector in ascending order, which lanes a cut keeps.
template <bool Ties>
struct Keeper {
    I32 cut;
    int64_t ties;
    __attribute__((always_inline)) explicit Keeper(const Cut& c)
        : cut(broadcast(c.key)), ties(c.ties) {}
    /// k: keys of the vector, NaNs clamped or not.
    __attribute__((always_inline)) Mask operator()(I32 k) {
        if (!Ties) return ge(k, cut);
        k = clamp_nan(k);
        const Mask tied = first_set(eq(k, cut), ties);
        ties -= count(tied);
        return mask_or(gt(k, cut), tied);
    }
};

/// The cut of keys[0..n), all <= kNanKey, with room for a block of padding; b brackets it. Many
/// keys are overwritten.
Cut search(int32_t* keys, int64_t n, int64_t m, Bracket b);

/// Up to this m candidates are bounded by groups; beyond, every entry is one.
constexpr int64_t kMaxGrouped = 200;

/// A bracket whose lo admits few candidates; 0 < m < p.
template <bool Positive>
Bracket candidate_bound(const float* u, int64_t p, int64_t m, int32_t* scratch);

/// The cut that keeps exactly min(max(m, 0), p) of the p entries of u. scratch: cut_scratch(p).
template <bool Positive>
Cut find_cut(const float* u, int64_t p, int64_t m, int32_t* scratch);

/// Writes the min(max(m, 0), p) entries of u of largest |u|, Positive: of max(u, 0), by the
/// contract of top_m.h: indices ascending, values bit-equal. idx and val need room for m +
/// kSelectSlack; scratch: cut_scratch(p); no two of them may overlap, nor u. p < 2^31.
template <bool Positive>
void select_top_m(const float* u, int64_t p, int64_t m, int32_t* scratch, int32_t* idx, float* val);

}  // namespace DEEPL0_ISA
}  // namespace deepl0
