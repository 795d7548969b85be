// Unit lists of a whole batch, one per block of rows, for the backward passes.
#pragma once

#include "core/unit_lists.h"
#include "torch/panels.h"

namespace deepl0::torch_ops {

/// Rows of a block: their dense side (bytes a row) fills half of L2, and every thread gets a block.
/// Results do not depend on it: all sums run over ascending rows, and over ascending units.
inline int64_t block_rows(int64_t batch, int64_t row_bytes) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t fit = l2_bytes() / 2 / std::max<int64_t>(1, row_bytes);
    return std::min(std::clamp<int64_t>(fit, 256, 4096), (batch + threads - 1) / threads);
}

/// So few entries that a transposed copy of their matrix of p columns costs more than scattered
/// reads of it.
inline bool few_entries(int64_t batch, int64_t m, int64_t p) { return m > 0 && batch * m < p / 4; }

/// Lists of one kind for every block of rows.
template <class T>
struct BlockLists {
    int64_t p, block_entries;
    Buffer<int32_t> start, row;
    Buffer<T> coefficient;

    BlockLists(int64_t blocks, int64_t p, int64_t block_entries)
        : p(p),
          block_entries(block_entries),
          start(blocks * (p + 1)),
          row(blocks * block_entries),
          coefficient(blocks * block_entries) {}
    UnitLists<T> operator[](int64_t b) const {
        return {start.get() + b * (p + 1), row.get() + b * block_entries,
                coefficient.get() + b * block_entries, nullptr};
    }
};

/// f(begin, end) for pieces of the units [begin, end) whose gradients, of so many bytes a unit,
/// stay in L2 while the rows of every block are added to them.
template <class F>
void in_pieces(int64_t begin, int64_t end, int64_t bytes, F f) {
    const int64_t piece = std::max<int64_t>(1, l2_bytes() / 4 / std::max<int64_t>(1, bytes));
    for (; begin < end; begin += piece) f(begin, std::min(end, begin + piece));
}

/// Nonnegative codes: no gradient where the value is 0.
template <class T>
void drop_zeros(const T* value, int64_t entries, T* du) {
    for (int64_t e = 0; e < entries; ++e) du[e] = value[e] == T(0) ? T(0) : du[e];
}

/// sum[i] += the coefficients of unit i, for i in [begin, end).
template <class T>
void add_coefficients(UnitLists<T> lists, int64_t begin, int64_t end, double* sum) {
    for (int64_t i = begin; i < end; ++i)
        for (int32_t e = lists.start[i]; e < lists.start[i + 1]; ++e)
            sum[i] += double(lists.coefficient[e]);
}

/// The sums of sparse rows over the stages, again as sparse rows.
template <class T>
class Totals {
  public:
    /// entries: at most so many in the result; p: the number of units.
    Totals(int64_t rows, int64_t p, int64_t entries)
        : sum_(p), stamp_(p), start_(rows + 1), index_(entries + 1), value_(entries) {
        std::fill_n(stamp_.get(), p, int64_t(-1));
    }

    /// Entries of the last stage come first. Valid until the next call.
    SparseRows<T> sum(const std::vector<SparseRows<T>>& stages, int64_t rows) {
        int32_t* start = start_.get();
        start[0] = 0;
        for (int64_t r = 0; r < rows; ++r) start[r + 1] = start[r] + add_row(stages, r, start[r]);
        return {index_.get(), value_.get(), start, 0};
    }

  private:
    int32_t add_row(const std::vector<SparseRows<T>>& stages, int64_t r, int32_t at) {
        const int64_t mark = ++marks_;
        T* sum = sum_.get();
        int64_t* stamp = stamp_.get();
        int32_t* used = index_.get() + at;
        int32_t n = 0;
        for (size_t k = stages.size(); k-- > 0;) {
            const SparseRows<T>& z = stages[k];
            for (int64_t e = z.begin(r); e < z.end(r); ++e) {
                const int32_t i = z.index[e];
                const bool fresh = stamp[i] != mark;
                stamp[i] = mark;
                sum[i] = (fresh ? T(0) : sum[i]) + z.value[e];
                used[n] = i;  // overwritten by the next entry unless fresh
                n += fresh;
            }
        }
        for (int32_t e = 0; e < n; ++e) value_.get()[at + e] = sum[used[e]];
        return n;
    }

    int64_t marks_ = 0;
    Buffer<T> sum_;
    Buffer<int64_t> stamp_;
    Buffer<int32_t> start_, index_;
    Buffer<T> value_;
};

}  // namespace deepl0::torch_ops
