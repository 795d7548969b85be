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

void check_encoder(const Tensor& x, const Tensor& w, const std::optional<Tensor>& s, int64_t stages,
                   const char* op) {
    STD_TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1), op,
                    ": x [B, n] and W [p, n] do not fit");
    dtype_of(x, "x");
    STD_TORCH_CHECK(stages >= 1, op, ": num_stages must be at least 1, got ", stages);
    STD_TORCH_CHECK(s || stages == 1, op, ": S may be None only when num_stages == 1");
    STD_TORCH_CHECK(w.scalar_type() == x.scalar_type(), op, ": W has not the dtype of x");
    if (!s) return;
    const int64_t p = w.size(0), d = s->dim();
    STD_TORCH_CHECK((d == 2 || (d == 3 && s->size(0) == stages - 1)) && s->size(d - 1) == p &&
                        s->size(d - 2) == p,
                    op, ": S must be [p, p] or [num_stages - 1, p, p]");
    STD_TORCH_CHECK(s->scalar_type() == x.scalar_type(), op, ": S has not the dtype of x");
}

void check_indices(const Tensor& indices, int64_t p, const char* op) {
    STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long, op, ": indices must be int64");
    const Tensor flat = torch::stable::contiguous(indices);
    const int64_t* at = static_cast<const int64_t*>(flat.const_data_ptr());
    uint64_t worst = 0;
    for (int64_t e = 0, n = flat.numel(); e < n; ++e) worst = std::max(worst, uint64_t(at[e]));
    // A negative index is a huge unsigned one.
    STD_TORCH_CHECK(flat.numel() == 0 || worst < uint64_t(p), op, ": indices must be in [0, ", p,
                    "), got ", int64_t(worst));
}

}  // namespace deepl0::torch_ops
