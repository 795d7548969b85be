// Products of bfloat16 rows on tensor cores: a block's tile of A B', copied by cp.async ahead of
// its use and multiplied by mma.sync m16n8k16 with float32 accumulators (sm_80 and later).
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

/// sum [16, 8] += a [16, 16] b' [16, 8].
__device__ inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
        " {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// A warp's half of a step, 16 terms: a and b, what its lanes name of its first rows. 6 ldmatrix,
/// 16 mma.
__device__ inline void multiply_half(Accumulators& sum, uint32_t a, uint32_t b) {
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
            multiply_add(sum.at[i][j], rows[i], &columns[j / 2][j % 2 * 2]);
    }
}

/// sum += the product of 128 rows of A and of B, both of `depth` terms, a multiple of 32, one row
/// after the other. All threads. One barrier a step: the buffer that a step fills was read in the
/// step before, which every warp has left.
__device__ inline void multiply_tile(ProductTile& s, const uint16_t* a, const uint16_t* b,
                                     int depth, Accumulators& sum) {
    using T = ProductTile;
    constexpr int kTogether = T::kThreads / T::kChunks;  // rows that all threads copy at once
    static_assert(2 * kTogether == T::kRows && T::kRows == T::kColumns, "two chunks a thread");
    const int thread = int(threadIdx.x), lane = lane_id();
    const int row = thread / T::kChunks, chunk = thread % T::kChunks;
    const uint32_t in_a = uint32_t(__cvta_generic_to_shared(s.a));
    const uint32_t in_b = uint32_t(__cvta_generic_to_shared(s.b)), to = T::place(row, chunk);
    const int64_t further = int64_t(kTogether) * depth;
    a += int64_t(row) * depth + chunk * 8;
    b += int64_t(row) * depth + chunk * 8;
    int left = depth;
    const auto copy = [&](uint32_t stage) {
        if (left > 0) {
            copy_async(in_a + stage + to, a);
            copy_async(in_a + stage + to + kTogether * T::kRow, a + further);
            copy_async(in_b + stage + to, b);
            copy_async(in_b + stage + to + kTogether * T::kRow, b + further);
        }
        commit_copies();
        a += T::kDepth;
        b += T::kDepth;
        left -= T::kDepth;
    };
    copy(0);
    copy(T::kStage);
    // Matrices of A are 8 rows, the next 8, and both again 8 terms on; of B 8 rows, 8 terms on.
    uint32_t at_a[2], at_b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        at_a[half] = in_a + T::place(Accumulators::first_row() + lane % 16, 2 * half + lane / 16);
        at_b[half] = in_b + T::place(Accumulators::first_column() + lane / 16 * 8 + lane % 8,
                                     2 * half + lane / 8 % 2);
    }
    uint32_t full = 0, empty = 2 * T::kStage;
#pragma unroll 1
    for (int steps = depth / T::kDepth; steps > 0; --steps) {
        wait_for_copies();
        __syncthreads();
        copy(empty);
        multiply_half(sum, at_a[0] + full, at_b[0] + full);
        multiply_half(sum, at_a[1] + full, at_b[1] + full);
        empty = full;
        full = full == (T::kStages - 1) * T::kStage ? 0 : full + T::kStage;
    }
}

}  // namespace deepl0::cuda
