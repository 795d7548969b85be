#include "torch/panels.h"

#include <unistd.h>

namespace deepl0::torch_ops {

int64_t l2_bytes() {
    static const int64_t bytes = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
        const long b = sysconf(_SC_LEVEL2_CACHE_SIZE);
        if (b > 0) return int64_t(b);
#endif
        return int64_t(1) << 20;
    }();
    return bytes;
}

}  // namespace deepl0::torch_ops
