// Sparse rows and their transpose: for every unit the rows that use it. The backward passes of the
// encoders and of decode run unit by unit over these lists, so that the rows of S, W or D and of
// their gradients stream once and stay in L1, and so that every sum has one fixed order whatever
// the threads.
#pragma once

#include <cstdint>

namespace deepl0 {

/// Rows with few entries: row r holds entries [start[r], start[r + 1]), or [r * m, (r + 1) * m)
/// where start is null. The indices of one row are distinct.
template <class T>
struct SparseRows {
    const int32_t* index;
    const T* value;
    const int32_t* start;
    int64_t m;

    int64_t begin(int64_t r) const { return start ? start[r] : r * m; }
    int64_t end(int64_t r) const { return start ? start[r + 1] : (r + 1) * m; }
};

/// The entries of a block of sparse rows by unit: unit i has entries [start[i], start[i + 1]), each
/// a row of the block, its coefficient, and its place among the entries of the block. Rows ascend.
template <class T>
struct UnitLists {
    int32_t* start;
    int32_t* row;
    T* coefficient;
    int32_t* place;  // may be null
};

/// Kernels of one ISA level, T = float or double.
template <class T>
struct UnitKernels {
    /// Counting sort of the entries of `rows` sparse rows. lists.start: p + 1 elements, the others
    /// one per entry. About 2 ns an entry and 1 ns a unit.
    void (*group)(SparseRows<T> z, int64_t rows, int64_t p, UnitLists<T> lists);

    /// out[e] += sum_i c_i s[i, index[e]] over the units i < units listed for the row of e, for all
    /// entries e of `at`: the product of the listed rows with s, on the support `at`. The rows of s
    /// (stride ld) stream once, in ascending order.
    void (*product_on_support)(UnitLists<T> lists, int64_t units, const T* s, int64_t ld,
                               SparseRows<T> at, T* out);

    /// The same from s transposed (row j of st is column j of s): out[place] = sum_e value[e] *
    /// st[j, index[e]] over the entries e of row `row` of du, for all (row, place) in the list of
    /// j.
    void (*product_on_lists)(UnitLists<T> lists, int64_t p, const T* st, SparseRows<T> du, T* out);

    /// out[i, index[e]] += c * value[e] for the entries e of every row listed for unit i, for i in
    /// [begin, end): an outer product per row, summed. out: row stride ld.
    void (*outer)(UnitLists<T> lists, int64_t begin, int64_t end, SparseRows<T> z, T* out,
                  int64_t ld);

    /// out[i, :] += sum c * x[row, :] over the list of unit i, i in [begin, end): n columns.
    void (*combine)(UnitLists<T> lists, int64_t begin, int64_t end, const T* x, int64_t ldx,
                    int64_t n, T* out);

    /// out[r, :] = base[r, :] + sum_e value[e] * w[index[e], :] over the entries of row r: n
    /// columns. base (row stride ldo like out, and maybe out itself) may be null.
    void (*gather)(SparseRows<T> z, int64_t rows, const T* w, int64_t ldw, int64_t n, const T* base,
                   T* out, int64_t ldo);

    /// The same of w transposed [n, p], as it lies: out[r, i] = base[r, i] + sum_e value[e] * wt[i,
    /// index[e]], term by term in the same order. Scattered reads: for a few rows.
    void (*gather_columns)(SparseRows<T> z, int64_t rows, const T* wt, int64_t p, int64_t n,
                           const T* base, T* out, int64_t ldo);

    /// The entries of z [p] that are not 0, in order; returns how many. index and value: room for
    /// p + 16.
    int64_t (*compress)(const T* z, int64_t p, int32_t* index, T* value);
};

/// The kernels of the ISA level in force.
template <class T>
const UnitKernels<T>& unit_kernels();

}  // namespace deepl0
