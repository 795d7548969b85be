// Arithmetic of sizes, for files of every level.
#pragma once

#include <cstdint>

#include "isa.h"

namespace deepl0 {

DEEPL0_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DEEPL0_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DEEPL0_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace deepl0
