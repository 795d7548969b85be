// Element types of the core and their conversions. The conversions here are the portable ones;
// simd.h has the vector forms with the same results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"

namespace deepl0 {

enum class DType : int { f32, f64, f16, bf16 };

/// Bytes per element.
DEEPL0_INLINE size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

/// IEEE binary16 and bfloat16 as stored.
struct half {
    uint16_t bits;
};
struct bfloat16 {
    uint16_t bits;
};

/// Bit copy between types of one size.
template <typename To, typename From>
DEEPL0_INLINE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

DEEPL0_INLINE float to_float(float x) { return x; }

DEEPL0_INLINE float to_float(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

DEEPL0_INLINE float to_float(half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
    const uint32_t rest = uint32_t(x.bits & 0x7fffu) << 13;
    if (rest >= 0x0f800000u) {  // inf and NaN; a NaN comes out quiet, as from vcvtph2ps
        const uint32_t quiet = rest > 0x0f800000u ? 0x00400000u : 0u;
        return bit_cast<float>(sign | 0x70000000u | rest | quiet);
    }
    if (rest <
        0x00800000u) {  // subnormal: by conversion, which a flush-to-zero mode cannot disturb
        const float tiny = float(x.bits & 0x3ffu) * 0x1p-24f;
        return bit_cast<float>(bit_cast<uint32_t>(tiny) | sign);
    }
    return bit_cast<float>((rest + 0x38000000u) | sign);
}

DEEPL0_INLINE bfloat16 to_bfloat16(float x) {
    const uint32_t b = bit_cast<uint32_t>(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return bfloat16{uint16_t((b >> 16) | 0x40u)};
    return bfloat16{uint16_t((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};
}

DEEPL0_INLINE half to_half(float x) {
    const uint32_t b = bit_cast<uint32_t>(x);
    const uint32_t sign = (b >> 16) & 0x8000u;
    const uint32_t a = b & 0x7fffffffu;
    if (a > 0x7f800000u) return half{uint16_t(sign | 0x7e00u | ((a >> 13) & 0x3ffu))};
    if (a >= 0x477ff000u) return half{uint16_t(sign | 0x7c00u)};  // >= 65520 rounds to inf
    if (a < 0x38800000u) {  // below 2^-14: adding 0.5 makes the FPU round to a multiple of 2^-24
        const float shifted = bit_cast<float>(a) + 0.5f;
        return half{uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
    }
    return half{uint16_t(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13))};
}

/// To float, half or bfloat16, rounded to nearest even; overflow gives inf, a NaN stays a (quiet)
/// NaN of the same sign.
template <typename T>
DEEPL0_INLINE T from_float(float x) {
    if constexpr (std::is_same_v<T, half>) {
        return to_half(x);
    } else if constexpr (std::is_same_v<T, bfloat16>) {
        return to_bfloat16(x);
    } else {
        static_assert(std::is_same_v<T, float>, "no such conversion");
        return x;
    }
}

}  // namespace deepl0
