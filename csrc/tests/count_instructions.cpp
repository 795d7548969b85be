// One kernel on so many rows, for an instruction counter: count_instructions KERNEL ROWS.
#include <cstdio>
#include <string>

#include "data.h"
#include "encode.h"
#include "thresholds.h"
#include "top_m.h"

using namespace deepl0;

namespace {

constexpr int64_t kP = 512, kM = 32;

int run(std::string kernel, int64_t rows) {
    const std::string prefix = "positive_";
    const bool positive = kernel.compare(0, prefix.size(), prefix) == 0;
    if (positive) kernel = kernel.substr(prefix.size());
    std::mt19937_64 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> u(size_t(rows * kP)), theta(kP, 1.0f), out(u.size()), s(kP * kP);
    for (float& x : u) x = normal(rng);
    for (float& x : s) x = normal(rng) / 32;
    std::vector<float> values(size_t(rows * kM));
    std::vector<int64_t> indices(values.size());
    std::vector<uint8_t> mask(size_t(rows * kP / 8));
    const Aligned workspace(std::max(int64_t(top_m_workspace_bytes(DType::f32, kP, kM)),
                                     encode_workspace<float>(kP, kM)));
    const TopMCodes<float> codes{
        values.data(), indices.data(), values.data(), indices.data(), kM, 2, 0, positive};
    if (kernel == "top_m")
        top_m_kernels().top_m(DType::f32, u.data(), kP, kP, kM, positive, values.data(),
                              indices.data(), 0, rows, workspace.get());
    else if (kernel == "keep_top_m")
        top_m_kernels().keep_top_m(DType::f32, u.data(), kP, kP, kM, positive, out.data(), kP,
                                   mask.data(), 0, rows, workspace.get());
    else if (kernel == "helu")
        threshold_kernels().threshold(DType::f32, {ThresholdKind::helu, positive}, u.data(), kP,
                                      theta.data(), true, 0.2, out.data(), kP, kP, 0, rows);
    else if (kernel == "encode_two_stages")
        encode_kernels<float>().rows(u.data(), rows, kP, {s.data(), 0, true}, codes,
                                     workspace.get());
    else if (kernel != "none")
        return 2;
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3) return run(argv[1], std::stol(argv[2]));
    std::fprintf(stderr, "usage: count_instructions KERNEL ROWS\n");
    return 2;
}
