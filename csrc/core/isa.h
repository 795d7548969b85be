// Run-time choice of the instruction set. A core <op>.cpp is compiled once per level and reached by
// its table of kernels (kernel_table.h).
#pragma once

// Set by the build: DEEPL0_ISA names the namespace of this compilation, DEEPL0_ISA_LEVEL its rank.
// Files that are compiled once only see the defaults and must not include simd.h.
#if defined(__x86_64__) || defined(_M_X64)
#define DEEPL0_X86 1
#else
#define DEEPL0_X86 0
#endif

// Helpers of ISA-compiled files must not leave a linkable copy behind: the linker keeps one of
// several equal inline functions, and that one may hold instructions the CPU lacks.
#define DEEPL0_INLINE static inline __attribute__((always_inline))
#define DEEPL0_NOINLINE static __attribute__((noinline, unused))

namespace deepl0 {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

/// "scalar", "avx2" or "avx512".
const char* isa_name(Isa isa);

/// Whether this build, this CPU and its operating system can run the level.
bool isa_supported(Isa isa);

/// Whether the CPU multiplies bfloat16 vectors (vdpbf16ps). That their registers are enabled goes
/// with level avx512.
bool cpu_has_bfloat16_vectors();

/// Whether the CPU multiplies int8 vectors (vpdpbusd at 512 bits), likewise.
bool cpu_has_int8_vectors();

/// Whether the CPU has AMX tiles for bfloat16, and the operating system grants them to this
/// process, which is asked for at the first call.
bool cpu_grants_bfloat16_tiles();

/// The level in force: the highest supported one, or the one named by the environment variable
/// DEEPL0_ISA (scalar, avx2, avx512), read at the first call. Throws std::runtime_error when the
/// variable holds another word or a level the CPU lacks; a later call reads it again.
Isa active_isa();

/// Puts a level in force for the whole process, for tests. Throws std::runtime_error when the CPU
/// lacks it.
void force_isa(Isa isa);

}  // namespace deepl0
