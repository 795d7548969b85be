// What the solvers form of D, once a call.
#pragma once

#include "torch/product.h"

namespace deepl0::torch_ops {

/// f(i) for i in [0, n), each on one thread: what it computes by torch's products does not depend
/// on how many there are.
template <class F>
void each(int64_t n, const F& f) {
    // A range of one would run outside of any parallel region, where the products are threaded.
    torch::stable::parallel_for(0, std::max<int64_t>(n, 2), 1, [&](int64_t begin, int64_t end) {
        if (begin < n) f(begin, std::min(end, n));
    });
}

/// -D' and mu D' [p, n] of D [n, p], rows without gaps; -mu D'D [p, p] where it is wanted.
template <class T>
struct Dictionary {
    Matrix<const T> d;
    int64_t n, p;
    Buffer<T> atoms, weights, gram;
    Product<T> correlations;  // of rows: mu D'x

    /// batch: rows whose correlations are to come.
    Dictionary(Matrix<const T> dictionary, T step, bool with_gram, int64_t batch)
        : d(dictionary),
          n(d.rows),
          p(d.cols),
          atoms(p * n),
          weights(scaled(step)),
          gram(with_gram ? p * p : 0),
          correlations(row_major<const T>(weights.get(), p, n), batch) {
        if (!with_gram) return;
        constexpr int64_t kBlock = 64;
        each((p + kBlock - 1) / kBlock, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin * kBlock; i < std::min(p, end * kBlock); i += kBlock)
                correlations(
                    row_major<const T>(atoms.get(), p, n).range(i, std::min(p, i + kBlock)),
                    gram.get() + i * p);
        });
    }

  private:
    Buffer<T> scaled(T step) {
        Buffer<T> out(p * n);
        transpose_matrix<T>(d.data, n, p, atoms.get());
        for (int64_t i = 0; i < n * p; ++i) {
            out.get()[i] = step * atoms.get()[i];
            atoms.get()[i] = -atoms.get()[i];
        }
        return out;
    }
};

}  // namespace deepl0::torch_ops
