// Row ranges of one call from several threads: no data race, and the bytes of a single thread.
#include <thread>

#include "check.h"
#include "data.h"
#include "encode.h"
#include "fista.h"
#include "thresholds.h"
#include "top_m.h"

using namespace deepl0;

namespace {

constexpr int64_t kRows = 101, kP = 203, kM = 17, kBytes = (kP + 7) / 8;
constexpr double kSigma = 0.2;

struct Results {
    std::vector<float> values = std::vector<float>(kRows * kM);
    std::vector<int64_t> indices = std::vector<int64_t>(kRows * kM);
    std::vector<float> kept = std::vector<float>(kRows * kP), masked = kept, dense = kept;
    std::vector<float> codes = values;
    std::vector<int64_t> supports = indices;
    std::vector<float> shrunk = kept, grad_u = kept, grad_theta = std::vector<float>(kP);
    std::vector<uint8_t> mask = std::vector<uint8_t>(kRows * kBytes);
    std::vector<float> solved = kept, solved_before = kept;
    std::vector<double> partial =
        std::vector<double>(threshold_backward_workspace_bytes(kRows, kP, true) / 8);

    bool operator==(const Results& o) const {
        return values == o.values && indices == o.indices && kept == o.kept && masked == o.masked &&
               dense == o.dense && shrunk == o.shrunk && grad_u == o.grad_u && codes == o.codes &&
               supports == o.supports && solved == o.solved && grad_theta == o.grad_theta &&
               mask == o.mask;
    }
};

template <typename F>
void split(int threads, int64_t n, F run) {
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
        pool.emplace_back([=] { run(n * t / threads, n * (t + 1) / threads); });
    }
    for (auto& t : pool) t.join();
}

/// Ten iterations of the rows [b, e), b = u and -mu D'D = steps whatever they mean; the state is
/// the task's, only the codes are shared.
void fista(const float* u, const float* steps, int64_t b, int64_t e, float* even, float* odd) {
    const int64_t n = e - b;
    const FistaProblem<float> f{kP, 0.5f, 0.5f, 0.25f, 1e-3, 10};
    std::vector<float> slopes(size_t(n * kP)), t(size_t(n), 1.0f), momentum(size_t(n), 0.0f);
    std::vector<float> threshold(size_t(n), 4.0f), half(size_t(n), 0.0f), objective(half);
    std::vector<int32_t> count(size_t(n), 0), rows(static_cast<size_t>(n));
    std::vector<int64_t> iterations(size_t(n), 0);
    std::vector<IhtStatus> status(size_t(n), IhtStatus::running);
    const std::unique_ptr<bool[]> converged(new bool[size_t(n)]());
    std::iota(rows.begin(), rows.end(), 0);
    const FistaRows<float> s{{even + b * kP, odd + b * kP},
                             slopes.data(),
                             t.data(),
                             momentum.data(),
                             threshold.data(),
                             count.data(),
                             iterations.data(),
                             status.data(),
                             converged.get(),
                             half.data(),
                             objective.data(),
                             nullptr,
                             n,
                             10};
    const Aligned workspace(fista_workspace<float>(kP));
    const auto& kernels = fista_kernels<float>();
    kernels.advance(f, s, rows.data(), n, u + b * kP, nullptr, false);
    kernels.iterate(f, s, rows.data(), n, u + b * kP, steps, kP, workspace.get());
}

Results run(const std::vector<float>& u, const std::vector<float>& theta,
            const std::vector<float>& steps, int threads) {
    Results x;
    split(threads, kRows, [&](int64_t b, int64_t e) {
        std::vector<char> ws(top_m_workspace_bytes(DType::f32, kP, kM));
        std::vector<char> seen(unpool_workspace_bytes(kP));
        top_m_kernels().top_m(DType::f32, u.data(), kP, kP, kM, false, x.values.data(),
                              x.indices.data(), b, e, ws.data());
        top_m_kernels().keep_top_m(DType::f32, u.data(), kP, kP, kM, false, x.kept.data(), kP,
                                   x.mask.data(), b, e, ws.data());
        top_m_kernels().apply_mask(DType::f32, u.data(), kP, x.mask.data(), kP, x.masked.data(), kP,
                                   b, e);
        unpool(DType::f32, x.values.data(), x.indices.data(), kM, kP, x.dense.data(), b, e,
               seen.data());
        const Aligned workspace(encode_workspace<float>(kP, kM));
        float* codes = x.codes.data() + b * kM;
        int64_t* supports = x.supports.data() + b * kM;
        encode_kernels<float>().rows(u.data() + b * kP, e - b, kP, {steps.data(), 0, true},
                                     {codes, supports, codes, supports, kM, 3, 0, false},
                                     workspace.get());
        threshold_kernels().threshold(DType::f32, {ThresholdKind::helu}, u.data(), kP, theta.data(),
                                      true, kSigma, x.shrunk.data(), kP, kP, b, e);
        fista(u.data(), steps.data(), b, e, x.solved.data(), x.solved_before.data());
    });
    split(threads, threshold_blocks(kRows), [&](int64_t b, int64_t e) {
        threshold_kernels().backward(DType::f32, {ThresholdKind::helu}, u.data(), kP, u.data(), kP,
                                     theta.data(), true, kSigma, x.grad_u.data(), kRows, kP, b, e,
                                     x.partial.data());
    });
    split(threads, kP, [&](int64_t b, int64_t e) {
        reduce_grad_theta(DType::f32, x.partial.data(), kRows, kP, true, x.grad_theta.data(), b, e);
    });
    return x;
}

}  // namespace

int main() {
    std::mt19937_64 rng(5);
    std::vector<float> u(kRows * kP), theta(kP), steps(kP * kP);
    for (float& x : u) x = float(draw(rng, 1, 0, 0));
    for (float& x : steps) x = float(draw(rng, 1, 0, 0)) / 32;
    for (float& t : theta) t = 0.5f + float(rng() % 8) / 8;
    for_each_isa([&](const char* isa) {
        const Results one = run(u, theta, steps, 1);
        for (int threads : {2, 3, 7})
            CHECK(run(u, theta, steps, threads) == one, "%s %d", isa, threads);
    });
    return report("test_threads");
}
