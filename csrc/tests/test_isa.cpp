#include <cstdlib>
#include <stdexcept>
#include <string>

#include "check.h"

using namespace deepl0;

static std::string error_of_active() {
    try {
        active_isa();
    } catch (const std::runtime_error& e) {
        return e.what();
    }
    return "";
}

static void test_environment() {
    setenv("DEEPL0_ISA", "sse9", 1);
    CHECK(error_of_active().find("sse9") != std::string::npos, "unknown word");
    for (auto isa : {Isa::avx2, Isa::avx512}) {
        if (isa_supported(isa)) continue;
        setenv("DEEPL0_ISA", isa_name(isa), 1);
        CHECK(error_of_active().find("not support") != std::string::npos, "%s", isa_name(isa));
    }
    setenv("DEEPL0_ISA", "scalar", 1);
    CHECK(active_isa() == Isa::scalar, "capped");
    setenv("DEEPL0_ISA", "sse9", 1);
    CHECK(active_isa() == Isa::scalar, "read once");
}

static void test_half(uint32_t bits) {
    const half h{uint16_t(bits)};
    const float f = to_float(h);
    const int exponent = int(bits >> 10 & 31), fraction = int(bits & 1023);
    double want = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                 : std::ldexp(fraction, -24);
    if (bits & 0x8000) want = -want;
    CHECK(std::isnan(want) ? std::isnan(f) : double(f) == want, "half %x is %g", bits, double(f));
    CHECK(std::signbit(f) == bool(bits & 0x8000), "sign of half %x", bits);
    if (std::isnan(want))
        CHECK(std::isnan(to_float(from_float<half>(f))), "NaN %x", bits);
    else
        CHECK(from_float<half>(f).bits == bits, "half %x there and back", bits);
}

/// The nearest T of x, by trying all finite ones around a candidate; ties to the even pattern.
template <typename T>
static void test_rounding(float x) {
    const uint16_t got = from_float<T>(x).bits;
    const double error = std::fabs(double(to_float(T{got})) - double(x));
    for (int step : {-1, 1}) {
        const T other{uint16_t(got + step)};
        if ((other.bits ^ got) & 0x8000 || std::isinf(to_float(other)) ||
            std::isnan(to_float(other)))
            continue;
        const double other_error = std::fabs(double(to_float(other)) - double(x));
        CHECK(error < other_error || (error == other_error && got % 2 == 0), "%a to %x", double(x),
              got);
    }
}

static void test_conversions() {
    for (uint32_t b = 0; b < 65536; ++b) {
        test_half(b);
        const bfloat16 x{uint16_t(b)};
        const float f = to_float(x);
        if (std::isnan(f))
            CHECK(std::isnan(to_float(from_float<bfloat16>(f))), "NaN %x", b);
        else
            CHECK(from_float<bfloat16>(f).bits == b, "bfloat16 %x there and back", b);
    }
    std::mt19937_64 rng(1);
    for (int i = 0; i < 100000; ++i) {
        const float x =
            float(std::ldexp(double(int64_t(rng() % 8192) - 4096) / 4, int(rng() % 44) - 34));
        if (std::fabs(x) < 65504) test_rounding<half>(x);
        test_rounding<bfloat16>(x);
    }
    CHECK(from_float<half>(65519.0f).bits == 0x7bff, "largest half");
    CHECK(from_float<half>(-65520.0f).bits == 0xfc00, "overflow");
    CHECK(from_float<bfloat16>(std::numeric_limits<float>::max()).bits == 0x7f80, "overflow");
    CHECK(std::isnan(to_float(from_float<bfloat16>(bit_cast<float>(0x7f800001u)))), "low NaN");
    CHECK(std::isnan(to_float(from_float<half>(bit_cast<float>(0xff800001u)))), "low NaN");
}

int main() {
    test_environment();
    test_conversions();
    return report("test_isa");
}
