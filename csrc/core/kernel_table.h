// Dispatch by tables: every level defines <name>_f32 and <name>_f64 of type Table<T> in its
// namespace, and level 0 defines the public <name>_kernels<T>() by DEEPL0_TABLES(Table, name),
// inside namespace deepl0.
#pragma once

#include "isa.h"

#if DEEPL0_X86
#define DEEPL0_TABLES_OF_LEVEL(level, Table, name) \
    namespace level {                              \
    extern const Table<float> name##_f32;          \
    extern const Table<double> name##_f64;         \
    }
#define DEEPL0_PICK_TABLE(name)  \
    switch (active_isa()) {      \
        case Isa::avx512:        \
            return avx512::name; \
        case Isa::avx2:          \
            return avx2::name;   \
        case Isa::scalar:        \
            break;               \
    }                            \
    return scalar::name;
#else
#define DEEPL0_TABLES_OF_LEVEL(level, Table, name)
#define DEEPL0_PICK_TABLE(name) return scalar::name;
#endif

#define DEEPL0_TABLES(Table, name)                  \
    DEEPL0_TABLES_OF_LEVEL(avx2, Table, name)       \
    DEEPL0_TABLES_OF_LEVEL(avx512, Table, name)     \
    template <>                                     \
    const Table<float>& name##_kernels<float>() {   \
        DEEPL0_PICK_TABLE(name##_f32)               \
    }                                               \
    template <>                                     \
    const Table<double>& name##_kernels<double>() { \
        DEEPL0_PICK_TABLE(name##_f64)               \
    }
