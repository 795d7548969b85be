#include "torch/cuda/rules.h"

#include <atomic>
#include <string>

#include "torch/cuda/bindings.h"

namespace deepl0::torch_ops::on_cuda {

namespace {

constexpr int64_t kMostElements = int64_t(1) << 28;

enum class Way { rules, gathers, products };

std::atomic<bool> tf32{false}, atomics{false};
std::atomic<Way> way{Way::rules};
std::atomic<int64_t> elements{kMostElements};

}  // namespace

bool gathers_pay(int64_t p, int64_t entries) {
    if (way != Way::rules) return way == Way::gathers;
    return p >= (tf32 ? 64 : 4) * entries;
}

bool sorting_pays(int64_t width, int64_t entries, double flops, bool half) {
    if (way != Way::rules) return way == Way::gathers;
    const int faster = half ? 8 : 1;
    return width >= 12 * faster * entries && flops >= faster * double(1 << 30);
}

bool half_products_pay(int64_t p, int64_t entries) {
    if (way != Way::rules) return way == Way::products;
    return p <= 1024 && p <= 32 * entries;
}

bool atomics_allowed() { return atomics; }

int64_t most_elements() { return elements; }

void tell(bool tf32_allowed, bool atomics_are) {
    tf32 = tf32_allowed;
    atomics = atomics_are;
}

void force(const char* name, int64_t held) {
    const std::string wanted = name;
    STD_TORCH_CHECK(wanted == "rules" || wanted == "gathers" || wanted == "products",
                    "force: rules, gathers or products, got ", wanted);
    way = wanted == "rules" ? Way::rules : wanted == "gathers" ? Way::gathers : Way::products;
    elements = held > 0 ? held : kMostElements;
}

}  // namespace deepl0::torch_ops::on_cuda
