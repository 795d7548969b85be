#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace deepl0 {
namespace {

constexpr Isa kAll[] = {Isa::scalar, Isa::avx2, Isa::avx512};
std::atomic<int> g_active{-1};

[[noreturn]] void fail_unsupported(Isa isa, const char* who) {
    throw std::runtime_error(std::string(who) + " asks for " + isa_name(isa) +
                             ", which this CPU does not support");
}

Isa detect() {
    if (const char* wanted = std::getenv("DEEPL0_ISA"); wanted && *wanted) {
        for (Isa isa : kAll) {
            if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
            if (!isa_supported(isa)) fail_unsupported(isa, "environment variable DEEPL0_ISA");
            return isa;
        }
        throw std::runtime_error(
            "environment variable DEEPL0_ISA must be scalar, avx2 or avx512, got \"" +
            std::string(wanted) + "\"");
    }
    Isa best = Isa::scalar;
    for (Isa isa : kAll) {
        if (isa_supported(isa)) best = isa;
    }
    return best;
}

}  // namespace

const char* isa_name(Isa isa) {
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "scalar";
}

bool isa_supported(Isa isa) {
    if (isa == Isa::scalar) return true;
#if DEEPL0_X86
    // GCC's and clang's builtin also asks the operating system (xgetbv) for the register state.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                      __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("f16c") &&
                      __builtin_cpu_supports("lzcnt");
    if (isa == Isa::avx2) return avx2;
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
#else
    return false;
#endif
}

Isa active_isa() {
    int isa = g_active.load(std::memory_order_relaxed);
    if (__builtin_expect(isa < 0, 0)) {
        isa = static_cast<int>(detect());
        g_active.store(isa, std::memory_order_relaxed);
    }
    return static_cast<Isa>(isa);
}

void force_isa(Isa isa) {
    if (!isa_supported(isa)) fail_unsupported(isa, "force_isa");
    g_active.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace deepl0
