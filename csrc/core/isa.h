// Run-time choice of the instruction set. A core <op>.cpp is compiled once per level; see the
// macros.
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

// At level 0, inside namespace deepl0: DEEPL0_DECLARE_LEVELS(f) declares avx2::f and avx512::f with
// the signature of the public deepl0::f; DEEPL0_PICK(f) is the pointer to the level in force.
#if DEEPL0_X86
#define DEEPL0_DECLARE_LEVELS(fn) \
    namespace avx2 {              \
    decltype(::deepl0::fn) fn;    \
    }                             \
    namespace avx512 {            \
    decltype(::deepl0::fn) fn;    \
    }
#define DEEPL0_PICK(fn)                                            \
    (::deepl0::active_isa() == ::deepl0::Isa::avx512 ? &avx512::fn \
     : ::deepl0::active_isa() == ::deepl0::Isa::avx2 ? &avx2::fn   \
                                                     : &scalar::fn)
#else
#define DEEPL0_DECLARE_LEVELS(fn)
#define DEEPL0_PICK(fn) (&scalar::fn)
#endif

namespace deepl0 {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

/// "scalar", "avx2" or "avx512".
const char* isa_name(Isa isa);

/// Whether this build, this CPU and its operating system can run the level.
bool isa_supported(Isa isa);

/// The level in force: the highest supported one, or the one named by the environment variable
/// DEEPL0_ISA (scalar, avx2, avx512), read at the first call. Throws std::runtime_error when the
/// variable holds another word or a level the CPU lacks; a later call reads it again.
Isa active_isa();

/// Puts a level in force for the whole process, for tests. Throws std::runtime_error when the CPU
/// lacks it.
void force_isa(Isa isa);

}  // namespace deepl0
