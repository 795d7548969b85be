// What forward and backward of the factored encoders share: z_{k+1} = h(z_k + step_k W (x - D z_k)
// + b).
#pragma once

#include "torch/atoms.h"

namespace deepl0::torch_ops {

/// Throws unless x [B, n], W [p, n] and D [n, p] fit.
inline void check_factored(const Tensor& x, const Tensor& w, const Tensor& d, const char* op) {
    check_encoder(x, w, std::nullopt, 1, op);
    STD_TORCH_CHECK(d.dim() == 2 && d.size(0) == w.size(1) && d.size(1) == w.size(0), op,
                    ": D must be [n, p]");
    STD_TORCH_CHECK(d.scalar_type() == x.scalar_type(), op, ": D has not the dtype of x");
}

/// The steps of the stages, 1 where none are given; checked.
template <class T>
std::vector<T> steps_of(const char* op, const std::optional<Tensor>& given, int64_t stages) {
    std::vector<T> steps(size_t(stages), T(1));
    if (!given) return steps;
    STD_TORCH_CHECK(
        given->dim() == 1 && given->size(0) == stages &&
            given->scalar_type() == (sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float),
        op, ": step must be [num_stages], in the accumulation dtype");
    const Tensor plain = torch::stable::contiguous(*given);
    std::copy_n(static_cast<const T*>(plain.const_data_ptr()), stages, steps.begin());
    for (const T step : steps) STD_TORCH_CHECK(step > 0, op, ": step must be > 0, got ", step);
    return steps;
}

/// Codes in memory, m entries a row.
template <class T>
struct Codes {
    T* values;
    int64_t* indices;
    int64_t m;

    Codes from(int64_t row) const { return {values + row * m, indices + row * m, m}; }
};

/// Where the nonzeros of a panel of dense rows are listed.
template <class T>
class Listed {
  public:
    Listed(int64_t rows, int64_t p)
        : p_(p), index_(rows * p + 16), start_(rows + 1), value_(rows * p + 16) {}

    /// The nonzeros of dense [rows, p], valid until the next call.
    SparseRows<T> operator()(const T* dense, int64_t rows) const {
        int32_t* const start = start_.get();
        start[0] = 0;
        for (int64_t r = 0; r < rows; ++r)
            start[r + 1] = start[r] + int32_t(unit_kernels<T>().compress(dense + r * p_, p_,
                                                                         index_.get() + start[r],
                                                                         value_.get() + start[r]));
        return {index_.get(), value_.get(), start, 0};
    }

  private:
    int64_t p_;
    Buffer<int32_t> index_, start_;
    Buffer<T> value_;
};

/// Whether to go entry by entry: a multiply-add of a gather costs about 6 times one of a product.
template <class T>
bool is_sparse(SparseRows<T> z, int64_t rows, int64_t p) {
    return z.end(rows - 1) * int64_t(6) <= rows * p;
}

/// x - D z of codes z, a gather-sum of atoms.
template <class T>
class Residuals {
  public:
    /// entries: of all codes together of a stage.
    Residuals(Matrix<const T> x, const Tensor& d, int64_t entries, Kept* kept = nullptr)
        : x_(x), n_(d.size(0)), p_(d.size(1)), atoms_(d, kept) {
        columns_ = !atoms_.transposed() && !kept && entries < p_ / 4;
        data_ = columns_ ? atoms_.data() : atoms_.rows();
    }

    /// out [rows, n] = step (x - D z) for rows [first, first + rows) of x and the same of z; z.m =
    /// 0 for z = 0.
    void operator()(int64_t first, int64_t rows, Codes<T> z, T step, T* out) const {
        const auto& kernels = decode_kernels<T>();
        const Codes<T> code = z.from(first);
        if (z.m == 0)
            std::fill_n(out, rows * n_, T(0));
        else if (columns_)
            kernels.columns(code.values, code.indices, rows, z.m, data_, n_, p_, out);
        else
            kernels.rows(code.values, code.indices, rows, z.m, data_, n_, out);
        finish(first, rows, step, out);
    }

    /// The same of dense codes z [rows, p] of these rows, and their nonzeros.
    void operator()(int64_t first, int64_t rows, const T* z, SparseRows<T> listed, T step,
                    T* out) const {
        if (!columns_ && is_sparse(listed, rows, p_))
            unit_kernels<T>().gather(listed, rows, data_, n_, n_, nullptr, out, n_);
        else
            mm<T>(row_major(out, rows, n_), row_major(z, rows, p_), transposed_atoms());
        finish(first, rows, step, out);
    }

  private:
    /// D' as a matrix.
    Matrix<const T> transposed_atoms() const {
        return columns_ ? row_major(data_, n_, p_).transposed() : row_major(data_, p_, n_);
    }

    void finish(int64_t first, int64_t rows, T step, T* out) const {
        for (int64_t r = 0; r < rows; ++r) {
            const T* x = x_.data + (first + r) * x_.row_stride;
            for (int64_t c = 0; c < n_; ++c) out[r * n_ + c] = step * (x[c] - out[r * n_ + c]);
        }
    }

    Matrix<const T> x_;  // row-major
    int64_t n_, p_;
    Atoms<T> atoms_;
    bool columns_;
    const T* data_;
};

}  // namespace deepl0::torch_ops
