#include "isa.h"

#if DEEPL0_X86 && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

#if DEEPL0_X86 && defined(__linux__)
bool has_vectors() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
}

/// amx-bf16 and amx-tile in the CPU, tile state enabled by the kernel and granted to this process.
bool ask_for_tiles() {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return false;  // osxsave
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if ((edx >> 22 & 1) == 0 || (edx >> 24 & 1) == 0 || !has_vectors()) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool has_vectors() { return false; }
bool ask_for_tiles() { return false; }
#endif

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

bool cpu_has_bfloat16_vectors() {
    static const bool has = has_vectors();
    return has;
}

bool cpu_has_int8_vectors() {
#if DEEPL0_X86
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

bool cpu_grants_bfloat16_tiles() {
    static const bool granted = ask_for_tiles();
    return granted;
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
