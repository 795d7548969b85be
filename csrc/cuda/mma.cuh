// Products of rows of half types on tensor cores: a block's tile of A B', copied by cp.async ahead
// of its use and multiplied by mma.sync m16n8k16 with float32 accumulators (sm_80 and later).
#pragma once

#include "element.cuh"

namespace deepl0::cuda {

/// 128 rows of A by 128 of B, 32 terms at a time, by 8 warps of 64 x 32. The shared memory of the
/// steps in flight; a row of a step is four chunks of 16 bytes, which are swapped so that ldmatrix
/// meets no bank twice.
struct ProductTile {
    static constexpr int kRows = 128, kColumns = 128, kDepth = 32, kThreads = 256, kStages = 3;
    static constexpr int kChunks = kDepth / 8;
    uint4 a[kStages][kRows * kChunks], b[kStages][kColumns * kChunks];

    /// In bytes; 8 rows further it is the same chunk of each.
    static constexpr uint32_t kRow = 16 * kChunks, kStage = kRow * kRows;
    static __device__ uint32_t place(int row, int chunk) {
        return uint32_t(row) * kRow + 16 * (chunk ^ ((row >> 1) & (kChunks - 1)));
    }
};

/// A warp's part: at[i][j] is its 16 x 8 block of rows 16 i and columns 8 j; of that a lane has, in
/// this order, the columns 2 (lane % 4) and the next of row lane / 4, then those of row lane / 4 +
/// 8.
struct Accumulators {
    static constexpr int kRows = 64, kColumns = 32, kDown = kRows / 16, kAcross = kColumns / 8;
    float at[kDown][kAcross][4];

    static __device__ int first_row() { return warp_id() % 2 * kRows; }
    static __device__ int first_column() { return warp_id() / 2 * kColumns; }
};

/// 16 bytes to a shared address.
__device__ inline void copy_async(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
/// The first `bytes` of 16, then zeros. Of none the address is not read.
__device__ inline void copy_async(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until all but the newest group of this thread's copies have arrived.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

/// Four 8 x 8 matrices, of which lane l names row l % 8 of matrix l / 8 by its shared address.
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

/// sum [16, 8] += a [16, 16] b' [16, 8], both of T.
template <class T>
__device__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t* b) {
    static_assert(std::is_same_v<T, BF16> || std::is_same_v<T, F16>, "half types");
    if constexpr (std::is_same_v<T, BF16>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6,"
            " %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
            " {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// A warp's half of a step, 16 terms: a and b, what its lanes name of its first rows. 6 ldmatrix,
/// 16 mma.
template <class T>
__device__ void multiply_half(Accumulators& sum, uint32_t a, uint32_t b) {
    uint32_t rows[Accumulators::kDown][4], columns[Accumulators::kAcross / 2][4];
#pragma unroll
    for (int i = 0; i < Accumulators::kDown; ++i)
        load_matrices(rows[i], a + 16 * i * ProductTile::kRow);
#pragma unroll
    for (int j = 0; j < Accumulators::kAcross / 2; ++j)
        load_matrices(columns[j], b + 16 * j * ProductTile::kRow);
#pragma unroll
    for (int i = 0; i < Accumulators::kDown; ++i) {
#pragma unroll
        for (int j = 0; j < Accumulators::kAcross; ++j)
            multiply_add<T>(sum.at[i][j], rows[i], &columns[j / 2][j % 2 * 2]);
    }
}

/// Rows of an operand from the first of a tile's 128 on, as many as there are.
struct TileRows {
    const uint16_t* first;
    int64_t stride;
    int64_t count;
};

/// sum += the product of the rows of A and of B, of `depth` terms of type T. All threads. WHOLE:
/// there are 128 of each, and depth is a multiple of 32; else rows and strides are multiples of 16
/// bytes, terms beyond depth are zeros, and rows beyond the last are that. One barrier a step: the
/// buffer that a step fills was read in the step before, which every warp has left; before the
/// next product there must be another.
template <class T, bool WHOLE>
__device__ void multiply_tile(ProductTile& s, TileRows rows_a, TileRows rows_b, int depth,
                              Accumulators& sum) {
    using Tile = ProductTile;
    constexpr int kTogether = Tile::kThreads / Tile::kChunks;  // rows that all threads copy at once
    static_assert(2 * kTogether == Tile::kRows && Tile::kRows == Tile::kColumns,
                  "two chunks a thread");
    const int thread = int(threadIdx.x), lane = lane_id();
    const int row = thread / Tile::kChunks, chunk = thread % Tile::kChunks;
    const uint32_t in_a = uint32_t(__cvta_generic_to_shared(s.a));
    const uint32_t in_b = uint32_t(__cvta_generic_to_shared(s.b)), to = Tile::place(row, chunk);
    const auto place = [&](const TileRows& rows, int at) {
        return (WHOLE ? at : min(int64_t(at), rows.count - 1)) * rows.stride;
    };
    const uint16_t* a = rows_a.first + place(rows_a, row) + chunk * 8;
    const uint16_t* b = rows_b.first + place(rows_b, row) + chunk * 8;
    const auto between = [&](const TileRows& rows) {
        return WHOLE ? kTogether * rows.stride : place(rows, row + kTogether) - place(rows, row);
    };
    const int64_t further_a = between(rows_a), further_b = between(rows_b);
    int left = depth;
    const auto copy_16 = [&](uint32_t to, const uint16_t* from) {
        if constexpr (WHOLE)
            copy_async(to, from);
        else
            copy_async(to, from, 2 * max(0, min(8, left - 8 * chunk)));
    };
    const auto copy = [&](uint32_t stage) {
        if (left > 0) {
            copy_16(in_a + stage + to, a);
            copy_16(in_a + stage + to + kTogether * Tile::kRow, a + further_a);
            copy_16(in_b + stage + to, b);
            copy_16(in_b + stage + to + kTogether * Tile::kRow, b + further_b);
        }
        commit_copies();
        a += Tile::kDepth;
        b += Tile::kDepth;
        left -= Tile::kDepth;
    };
    copy(0);
    copy(Tile::kStage);
    // Matrices of A are 8 rows, the next 8, and both again 8 terms on; of B 8 rows, 8 terms on.
    uint32_t at_a[2], at_b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        at_a[half] =
            in_a + Tile::place(Accumulators::first_row() + lane % 16, 2 * half + lane / 16);
        at_b[half] = in_b + Tile::place(Accumulators::first_column() + lane / 16 * 8 + lane % 8,
                                        2 * half + lane / 8 % 2);
    }
    uint32_t full = 0, empty = 2 * Tile::kStage;
#pragma unroll 1
    for (int steps = (depth + Tile::kDepth - 1) / Tile::kDepth; steps > 0; --steps) {
        wait_for_copies();
        __syncthreads();
        copy(empty);
        multiply_half<T>(sum, at_a[0] + full, at_b[0] + full);
        multiply_half<T>(sum, at_a[1] + full, at_b[1] + full);
        empty = full;
        full = full == (Tile::kStages - 1) * Tile::kStage ? 0 : full + Tile::kStage;
    }
}

}  // namespace deepl0::cuda
