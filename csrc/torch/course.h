// The course of a solver's rows: iterations, convergence, objectives.
#pragma once

#include <limits>
#include <vector>

#include "core/iht.h"
#include "torch/panels.h"

namespace deepl0::torch_ops {

/// iterations, converged and objective of all rows.
struct Course {
    Tensor iterations, converged, objective;

    /// objective [2, batch], for a history it comes later.
    Course(const Tensor& x, int64_t batch, bool with_history)
        : iterations(fresh({batch}, ScalarType::Long)),
          converged(torch::stable::new_empty(x, {batch}, ScalarType::Bool)),
          objective(torch::stable::new_empty(x, {with_history ? 1 : 2, batch})) {}
};

/// The objectives of the rows from `begin` on, in blocks of kIhtBlock iterations.
template <class T>
struct History {
    int64_t begin, rows;
    std::vector<Buffer<T>> blocks;
    std::vector<T*> pointers;

    /// Makes room for an iteration more of every row listed. Returns how many iterations fit.
    int64_t grow(const std::vector<int32_t>& active, const int64_t* iterations) {
        int64_t most = 0;
        for (const int32_t r : active) most = std::max(most, iterations[r]);
        while (int64_t(blocks.size()) * kIhtBlock <= most + 1) {
            blocks.emplace_back(kIhtBlock * rows);
            pointers.push_back(blocks.back().get());
        }
        return int64_t(blocks.size()) * kIhtBlock - 1;
    }
    T& at(int64_t k, int64_t r) const {
        return pointers[size_t(k / kIhtBlock)][k % kIhtBlock * rows + r];
    }
};

/// objective [T + 1, batch] of all histories; a row that stopped repeats its last value.
template <class T>
Tensor join(const Tensor& x, const std::vector<History<T>>& histories, const int64_t* iterations,
            int64_t batch) {
    const int64_t longest = *std::max_element(iterations, iterations + batch);
    Tensor joined = torch::stable::new_empty(x, {longest + 1, batch});
    T* objective = static_cast<T*>(joined.mutable_data_ptr());
    for (const History<T>& h : histories) {
        for (int64_t k = 0; k <= longest; ++k) {
            for (int64_t r = 0; r < h.rows; ++r) {
                const int64_t at = h.begin + r;
                objective[k * batch + at] = h.at(std::min(k, iterations[at]), r);
            }
        }
    }
    return joined;
}

/// Removes the rows that are done.
inline void retire(std::vector<int32_t>& active, const IhtStatus* status) {
    const auto stands = [&](int32_t r) { return status[r] >= IhtStatus::done; };
    active.erase(std::remove_if(active.begin(), active.end(), stands), active.end());
}

/// 1/2 ||x||^2 of a row, summed in double.
template <class T>
T half_square(const T* x, int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += double(x[c]) * double(x[c]);
    return T(sum / 2);
}

/// D without gaps between its rows, copying it only if need be. d keeps the memory alive.
template <class T>
Matrix<const T> plain_matrix(Tensor& d) {
    if (row_major_matrix<T>(d).row_stride != d.size(1)) d = torch::stable::contiguous(d);
    return row_major<const T>(static_cast<const T*>(d.const_data_ptr()), d.size(0), d.size(1));
}

/// Throws unless x [B, n] and D [n, p] fit and step and max_iter are possible.
inline void check_solver(const char* op, const Tensor& x, const Tensor& d, double step,
                         int64_t max_iter) {
    STD_TORCH_CHECK(x.dim() == 2 && d.dim() == 2 && x.size(1) == d.size(0), op,
                    ": x [B, n] and D [n, p] do not fit");
    STD_TORCH_CHECK(x.scalar_type() == d.scalar_type() && (x.scalar_type() == ScalarType::Float ||
                                                           x.scalar_type() == ScalarType::Double),
                    op, ": x and D must both be float32 or float64");
    const double most = x.scalar_type() == ScalarType::Double ? std::numeric_limits<double>::max()
                                                              : std::numeric_limits<float>::max();
    STD_TORCH_CHECK(step > 0 && step <= most, op,
                    ": step must be > 0 and within the range of x's dtype, got ", step);
    STD_TORCH_CHECK(max_iter >= 1, op, ": max_iter must be >= 1, got ", max_iter);
}

/// The data of a start [B, p], null without one. Keeps it contiguous.
inline const void* dense_start(const char* op, const Tensor& x, const Tensor& d,
                               std::optional<Tensor>& start) {
    if (!start) return nullptr;
    STD_TORCH_CHECK(start->dim() == 2 && start->size(0) == x.size(0) &&
                        start->size(1) == d.size(1) && start->scalar_type() == x.scalar_type(),
                    op, ": the start must be [B, p] of the dtype of x");
    start = torch::stable::contiguous(*start);
    return start->const_data_ptr();
}

}  // namespace deepl0::torch_ops
