// The product x W' against its definition, bit for bit: one chain of multiply-adds per entry.
#include <string>

#include "data.h"
#include "product.h"

using namespace deepl0;

namespace {

float chain(const float* x, const float* w, int64_t n, float sum, bool fused) {
    for (int64_t k = 0; k < n; ++k) {
        if (fused) {
            sum = std::fma(x[k], w[k], sum);
        } else {
            const volatile float product = x[k] * w[k];
            sum = product + sum;
        }
    }
    return sum;
}

void test_rows(const char* isa, int64_t rows, int64_t p, int64_t n, int pad, int flavour) {
    std::mt19937_64 rng(uint64_t(rows * 7 + p * 5 + n * 3 + flavour));
    const int64_t ldx = n + pad, ldw = n + 2 * pad, ldo = p + pad;
    // The last row ends with its last entry: nothing beyond may be touched.
    Exact<float> x((rows - 1) * ldx + n), w((p - 1) * ldw + n), out((rows - 1) * ldo + p), bias(p);
    const bool biased = rng() % 2;
    for (auto* t : {&x, &w, &bias})
        for (int64_t i = 0; i < t->n; ++i) (*t)[i] = float(draw(rng, flavour, i % 50, 50));
    Exact<float> packed(product_packed_size(p, n));
    const int64_t groups = (p + kProductGroup - 1) / kProductGroup;
    product_kernels().pack(w.get(), ldw, p, n, groups / 2, groups, packed.get());
    product_kernels().pack(w.get(), ldw, p, n, 0, groups / 2, packed.get());
    product_kernels().rows(x.get(), ldx, rows, packed.get(), p, n, biased ? bias.get() : nullptr,
                           out.get(), ldo);
    const bool fused = std::string(isa) != "scalar";
    bool good = true, untouched = true;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < p; ++i) {
            const float want =
                chain(&x.get()[r * ldx], &w.get()[i * ldw], n, biased ? bias[i] : 0, fused);
            good = good && near(double(out[r * ldo + i]), double(want), 0);
        }
        for (int64_t i = p; i < ldo && r + 1 < rows; ++i)
            untouched = untouched && out[r * ldo + i] == 77;
    }
    CHECK(good && untouched, "%s rows=%ld p=%ld n=%ld pad=%d flavour=%d", isa, long(rows), long(p),
          long(n), pad, flavour);
}

}  // namespace

int main() {
    for_each_isa([](const char* isa) {
        for (int64_t rows : {1, 3, 8, 13, 65, 130})
            for (int64_t p : {1, 31, 32, 33, 70})
                for (int64_t n : {0, 1, 5, 64, 256, 257, 600})
                    test_rows(isa, rows, p, n, int(rows % 3), 0);
        for (int flavour = 1; flavour < kFlavours; ++flavour)
            for (int64_t n : {5, 300}) test_rows(isa, 21, 45, n, 1, flavour);
    });
    return report("product");
}
