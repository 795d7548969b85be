// Element types on the device: their key, their float32 value, loads of several at a time.
//
// The key of an entry is the integer image of |u|: its order is that of |u|, subnormal numbers
// included whatever the flush-to-zero mode; every NaN has one key, just above inf; -0.0 has that of
// 0.0. Keys are not negative; -1 is the key of padding, which is never kept.
#pragma once

#include <cstdint>
#include <type_traits>

namespace deepl0::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kPadding = -1;

/// Key of the element types of one size: the bit pattern without its sign, NaNs folded to `nan`.
template <class Bits>
struct KeyOf {
    static constexpr int kBits = 8 * sizeof(Bits) - 1;
    int nan;
    __device__ int operator()(Bits b) const { return min(int(b & ((1u << kBits) - 1u)), nan); }
};

/// The bits of max(u, 0), of a NaN as they are; `nan` as above.
template <class Bits>
__device__ Bits positive_part(Bits b, int nan) {
    constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
    return unsigned(Bits(b ^ kSign)) < unsigned(nan) ? Bits(0) : b;
}

/// The same where POSITIVE, else the bits.
template <bool POSITIVE, class Bits>
__device__ Bits selectable(Bits b, int nan) {
    if constexpr (POSITIVE) return positive_part(b, nan);
    return b;
}

/// Just above inf: the NaN key of float32, float16 and bfloat16.
constexpr int kNanF32 = 0x7f800001, kNanF16 = 0x7c01, kNanBF16 = 0x7f81;

struct F32 {
    using Bits = uint32_t;
    static __device__ float value(Bits b) { return __uint_as_float(b); }
    static __device__ Bits rounded(float x) { return __float_as_uint(x); }
};

struct F16 {
    using Bits = uint16_t;
    static __device__ float value(Bits b) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(b));
        return x;
    }
    static __device__ Bits rounded(float x) {
        Bits b;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(x));
        return b;
    }
};

struct BF16 {
    using Bits = uint16_t;
    static __device__ float value(Bits b) { return __uint_as_float(uint32_t(b) << 16); }
    static __device__ Bits rounded(float x) {
        Bits b;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(x));
        return b;
    }
};

/// V elements that one instruction loads or stores.
template <class Bits, int V>
struct alignas(sizeof(Bits) * V) Pack {
    Bits at[V];
};

/// Whether packs can be loaded from every row of an array.
template <class Bits, int V>
__host__ __device__ bool rows_aligned(const Bits* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % sizeof(Pack<Bits, V>) == 0 && stride % V == 0;
}

/// row[begin, begin + V), by one instruction where that is allowed; 0 from `size` on.
template <int V, class Bits>
__device__ Pack<Bits, V> load_pack(const Bits* row, int begin, int size, bool aligned) {
    if (aligned && begin + V <= size) {
        return *reinterpret_cast<const Pack<Bits, V>*>(row + begin);
    }
    Pack<Bits, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.at[v] = begin + v < size ? row[begin + v] : Bits(0);
    return pack;
}

/// Whether load_pack<V, true> may be used: no pack of a row is cut off or misaligned.
template <class Bits, int V>
__device__ bool rows_whole(const Bits* data, int64_t stride, int size) {
    return rows_aligned<Bits, V>(data, stride) && size % V == 0;
}

/// The same for rows of whole packs, without a branch: loads ahead of their use stay ahead of it.
template <int V, bool WHOLE, class Bits>
__device__ Pack<Bits, V> load_pack(const Bits* row, int begin, int size, bool aligned) {
    if constexpr (WHOLE) {
        Pack<Bits, V> pack{};
        if (begin < size) pack = *reinterpret_cast<const Pack<Bits, V>*>(row + begin);
        return pack;
    } else {
        return load_pack<V>(row, begin, size, aligned);
    }
}

/// Calls run(std::true_type()) or run(std::false_type()), as `whole` says.
template <class Run>
__device__ void by_whole(bool whole, Run run) {
    if (whole)
        run(std::true_type());
    else
        run(std::false_type());
}

/// The opposite of load_pack; nothing is written from `size` on.
template <int V, class Bits>
__device__ void store_pack(Bits* row, int begin, int size, bool aligned, Pack<Bits, V> pack) {
    if (aligned && begin + V <= size) {
        *reinterpret_cast<Pack<Bits, V>*>(row + begin) = pack;
        return;
    }
#pragma unroll
    for (int v = 0; v < V; ++v)
        if (begin + v < size) row[begin + v] = pack.at[v];
}

__device__ inline int lane_id() { return int(threadIdx.x & 31u); }
__device__ inline unsigned lanes_below() { return (1u << lane_id()) - 1u; }

/// The warp's number, the same for all its lanes in the compiler's eyes as well.
__device__ inline int warp_id() { return int(threadIdx.x >> 5); }

}  // namespace deepl0::cuda
