// The kernel of transpose.h.
#include "transpose.h"

namespace deepl0::cuda {

constexpr int kTile = 32;
constexpr int kThreads = 256;

/// A tile a block. A row of the tile has one element more, so that a column spreads over all banks.
template <class Bits>
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const Bits* in, int64_t in_stride, int64_t rows, int64_t columns,
                     int64_t tiles, Bits* out) {
    __shared__ Bits tile[kTile][kTile + 1];
    const int64_t row = blockIdx.x / tiles * kTile, column = blockIdx.x % tiles * kTile;
    const int along = int(threadIdx.x) % kTile, across = int(threadIdx.x) / kTile;
    constexpr int kStep = kThreads / kTile;
#pragma unroll
    for (int i = across; i < kTile; i += kStep)
        if (row + i < rows && column + along < columns)
            tile[i][along] = in[(row + i) * in_stride + column + along];
    __syncthreads();
#pragma unroll
    for (int i = across; i < kTile; i += kStep)
        if (column + i < columns && row + along < rows)
            out[(column + i) * rows + row + along] = tile[along][i];
}

void transpose(size_t element, const void* in, int64_t in_stride, int64_t rows, int64_t columns,
               void* out, cudaStream_t stream) {
    if (rows == 0 || columns == 0) return;
    const char* name = "transpose_kernel";
    const int64_t tiles = ceil_div(columns, kTile);
    const auto run = [&](auto of) {
        using Bits = decltype(of);
        transpose_kernel<Bits>
            <<<grid_size(ceil_div(rows, kTile) * tiles, name), kThreads, 0, stream>>>(
                static_cast<const Bits*>(in), in_stride, rows, columns, tiles,
                static_cast<Bits*>(out));
        launched(name);
    };
    element == 4 ? run(uint32_t()) : run(uint16_t());
}

}  // namespace deepl0::cuda
