// The sparse form of a dense code. For files that are compiled once per ISA level.
#pragma once

#include "simd.h"

namespace deepl0::DEEPL0_ISA {

/// The entries of z [p] that are not 0, in order; indices and values: room for p + 16.
template <class T>
DEEPL0_INLINE int64_t nonzeros(const T* z, int64_t p, int32_t* indices, T* values) {
    int64_t n = 0, i = 0;
    if constexpr (sizeof(T) == 4) {
        I32 at = iota();
        for (; i + kLanes <= p; i += kLanes) {
            const F32 v = load(z + i);
            const Mask used = gt(key(v), broadcast(int32_t(0)));
            compress(indices + n, used, at);
            compress(values + n, used, v);
            n += count(used);
            at = add(at, broadcast(int32_t(kLanes)));
        }
    }
    for (; i < p; ++i) {
        indices[n] = int32_t(i);
        values[n] = z[i];
        n += !(z[i] == T(0));
    }
    return n;
}

}  // namespace deepl0::DEEPL0_ISA
