// What a composed pass is made of: one allocation for all that it needs on the way, views of it,
// torch's products, and matrices as rows of atoms.
#pragma once

#include "torch/cuda/bindings.h"

namespace deepl0::torch_ops::on_cuda {

/// A part of a workspace; without bytes there is none.
struct Piece {
    int64_t offset = 0, bytes = 0;
};

/// The memory of a pass between its kernels: parts are asked for, allocated at once, and then used.
class Workspace {
  public:
    Piece bytes(int64_t count);
    Piece floats(int64_t count) { return bytes(4 * count); }
    Piece longs(int64_t count) { return bytes(8 * count); }

    void allocate(const Tensor& like);

    template <class T>
    T* at(Piece piece) const {
        return static_cast<T*>(address(piece));
    }

    /// [rows, columns] of a part.
    Tensor matrix(Piece piece, int64_t rows, int64_t columns,
                  ScalarType type = ScalarType::Float) const;

  private:
    void* address(Piece piece) const;

    int64_t size_ = 0;
    std::optional<Tensor> memory_;
    char* data_ = nullptr;  // null of a tensor without data
};

/// A view, `offset` elements after the first.
Tensor view(const Tensor& t, int64_t rows, int64_t columns, int64_t row_stride,
            int64_t column_stride, int64_t offset = 0);
Tensor transposed(const Tensor& matrix);
/// Rows [begin, begin + count) of a matrix.
Tensor rows_of(const Tensor& matrix, int64_t begin, int64_t count);

/// out = a b, or base + a b (base may be out, or one row for all). float32, or half types into
/// float32; a product of torch's, called without the dispatcher where that can be.
void product(Tensor& out, const Tensor& a, const Tensor& b);
void add_product(Tensor& out, const Tensor& base, const Tensor& a, const Tensor& b);

/// Whether the matrix is a transposed view: its columns are rows in memory.
bool by_columns(const Tensor& matrix);
/// An uninitialised gradient of the matrix [.., rows, columns], in its layout, of `type`.
Tensor gradient_of_matrix(const Tensor& matrix, ScalarType type);

/// The matrix from stage k to stage k + 1 (k from 0): S is shared or one per stage.
Tensor stage_matrix(const Tensor& s, int64_t k);

/// The rows of the transpose of a matrix [n, p]: its own memory where it has them, else a copy in
/// a workspace.
class Atoms {
  public:
    /// Asks for the memory of the copy, if there will be one.
    Atoms(const Tensor& matrix, Workspace& workspace);
    /// Makes the copy; later calls make another, for `matrix` of the same form.
    void make(const Tensor& matrix, const Workspace& workspace, cudaStream_t stream);

    const void* data = nullptr;
    int64_t stride = 0;

  private:
    bool copied_;
    Piece piece_;
    std::optional<Rows> rows_;  // keeps a copy with one stride alive
};

}  // namespace deepl0::torch_ops::on_cuda
