// Dispatch by tables of function pointers: every level defines its own in its namespace, the only
// names that it exports, and level 0 defines the public accessor, inside namespace deepl0.
#pragma once

#include "isa.h"

#if DEEPL0_X86
#define DEEPL0_TABLE_OF_LEVELS(Table, name) \
    namespace avx2 {                        \
    extern const Table name;                \
    }                                       \
    namespace avx512 {                      \
    extern const Table name;                \
    }
#define DEEPL0_TABLE_IN_FORCE(name) \
    switch (active_isa()) {         \
        case Isa::avx512:           \
            return avx512::name;    \
        case Isa::avx2:             \
            return avx2::name;      \
        case Isa::scalar:           \
            break;                  \
    }                               \
    return scalar::name;
#else
#define DEEPL0_TABLE_OF_LEVELS(Table, name)
#define DEEPL0_TABLE_IN_FORCE(name) return scalar::name;
#endif

/// <name>_kernels() from the <name>_table of every level.
#define DEEPL0_TABLE(Table, name)               \
    DEEPL0_TABLE_OF_LEVELS(Table, name##_table) \
    const Table& name##_kernels() { DEEPL0_TABLE_IN_FORCE(name##_table) }

/// <name>_kernels<T>() from the <name>_f32 and <name>_f64, Table<T>, of every level.
#define DEEPL0_TABLES(Table, name)                    \
    DEEPL0_TABLE_OF_LEVELS(Table<float>, name##_f32)  \
    DEEPL0_TABLE_OF_LEVELS(Table<double>, name##_f64) \
    template <>                                       \
    const Table<float>& name##_kernels<float>() {     \
        DEEPL0_TABLE_IN_FORCE(name##_f32)             \
    }                                                 \
    template <>                                       \
    const Table<double>& name##_kernels<double>() {   \
        DEEPL0_TABLE_IN_FORCE(name##_f64)             \
    }
