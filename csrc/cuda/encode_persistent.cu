// The kernel of encode_persistent.h.
//
// A warp owns 64 columns of a tile: 64 x 64 sums in registers. W and S arrive in slices of 16
// columns, copied while the slice before is multiplied. Between products the tile of u stands in
// shared memory, where warps select whole rows and leave z in its place.
#include "encode_persistent.h"
#include "select.cuh"

namespace deepl0::cuda {

namespace {

constexpr int kRows = 64;         // of a tile
constexpr int kWarpColumns = 64;  // of a warp
constexpr int kDepth = int(kPersistentDepth);
constexpr int kRowBytes = kDepth * 2;  // of a slice

/// A tile of codes of COLUMNS entries.
template <int COLUMNS>
struct Tile {
    static constexpr int kThreads = COLUMNS / kWarpColumns * 32;
    /// Floats from row to row of u: with 8 beyond a multiple of 32, the 64-bit loads of a fragment
    /// meet every bank once.
    static constexpr int kStride = COLUMNS + 8;
    static constexpr int kSliceBytes = COLUMNS * kRowBytes;  // of W or S
    /// In shared memory: u, and two slices of W or S. Slices of x lie where u will be.
    static constexpr int kBytesOfU = kRows * kStride * 4;
    static constexpr int kSharedBytes = kBytesOfU + 2 * kSliceBytes;
};

using Sums = float[kRows / 16][kWarpColumns / 8][4];

/// Where the half (of 16 bytes) of a slice's row lies. Halves change places in rows 4 to 7 of every
/// eight, so that the eight rows that a matrix load touches meet every bank once.
__device__ uint32_t at_slice(int row, int half) {
    return uint32_t(row * kRowBytes + ((half ^ (row >> 2)) & 1) * 16);
}

/// Starts the copy of a slice, `real` of `rows` rows of `stride` bfloat16; the others become zero.
template <int THREADS>
__device__ void copy_slice(uint32_t to, const uint16_t* from, int64_t stride, int rows, int real) {
    for (int i = int(threadIdx.x); i < 2 * rows; i += THREADS) {
        const int row = i / 2, half = i % 2;
        const bool inside = row < real;
        const uint16_t* source = from + (inside ? row * stride : 0) + half * 8;
        asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + at_slice(row, half)),
            "l"(source), "r"(inside ? 16 : 0)
            : "memory");
    }
}

__device__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ void copies_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

/// Four 8 x 8 matrices of bfloat16 whose rows the lanes name.
__device__ void load_matrices(uint32_t (&to)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

/// c += a b: 16 x 16 by 16 x 8.
__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The upper halves of two words side by side: two float32 numbers cut off to bfloat16.
__device__ uint32_t cut_off(float x, float y) {
    return __byte_perm(__float_as_uint(x), __float_as_uint(y), 0x7632);
}

/// What cutting off leaves, exactly; 0 of inf and NaN.
__device__ float rest_of(float x) {
    const float rest = x - __uint_as_float(__float_as_uint(x) & 0xffff0000u);
    return fabsf(x) < __int_as_float(0x7f800000) ? rest : 0.0f;
}

/// A NaN whose payload is in its lower half would become inf.
__device__ float quiet(float x) {
    return x == x ? x : __uint_as_float(__float_as_uint(x) | 0x400000u);
}

/// 16 x 16 entries of z from row `row` of the tile on as three terms, the largest first: 24 bits of
/// a float32 number are three times eight, so their sum is z. (Of numbers below 2^-110, bits below
/// 2^-133 are lost.)
__device__ void load_terms(uint32_t (&term)[3][4], const float* z, int stride) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float* at = z + (g + (i % 2) * 8) * stride + 2 * t + (i / 2) * 8;
        const float2 pair = *reinterpret_cast<const float2*>(at);
        float x = quiet(pair.x), y = quiet(pair.y);
        term[0][i] = cut_off(x, y);
        x = rest_of(x);
        y = rest_of(y);
        term[1][i] = cut_off(x, y);
        term[2][i] = cut_off(rest_of(x), rest_of(y));
    }
}

/// sums += A B' over `depth` columns. B: COLUMNS rows of `depth` bfloat16. A: the tile's z in u,
/// or, if FROM_X, `real` rows of `depth` bfloat16 at x. Begins with a barrier; after it u is read
/// (or overwritten, if FROM_X) until the next one.
template <int COLUMNS, bool FROM_X>
__device__ void add_product(Sums& sums, float* u, const uint16_t* x, int real, const uint16_t* b,
                            int depth) {
    using T = Tile<COLUMNS>;
    const uint32_t base = uint32_t(__cvta_generic_to_shared(u));
    const uint32_t b_slices = base + T::kBytesOfU;
    const auto copy = [&](int step) {
        const uint32_t other = uint32_t(step & 1);
        copy_slice<T::kThreads>(b_slices + other * T::kSliceBytes, b + step * kDepth, depth,
                                COLUMNS, COLUMNS);
        if constexpr (FROM_X)
            copy_slice<T::kThreads>(base + other * kRows * kRowBytes, x + step * kDepth, depth,
                                    kRows, real);
        copies_end();
    };
    const int lane = lane_id(), steps = depth / kDepth;
    // Of the four matrices of a load, the one whose row this lane names, and that row.
    const int matrix = lane / 8, row = lane % 8;
    if (steps == 0) return;
    __syncthreads();
    copy(0);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        copies_wait();
        __syncthreads();
        if (step + 1 < steps) copy(step + 1);
        const uint32_t other = uint32_t(step & 1);
        uint32_t columns[kWarpColumns / 16][4];
#pragma unroll
        for (int j = 0; j < kWarpColumns / 16; ++j) {
            const int column = warp_id() * kWarpColumns + j * 16 + (matrix / 2) * 8 + row;
            load_matrices(columns[j],
                          b_slices + other * T::kSliceBytes + at_slice(column, matrix % 2));
        }
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i) {
            uint32_t term[3][4];
            constexpr int kTerms = FROM_X ? 1 : 3;
            if constexpr (FROM_X)
                load_matrices(term[0], base + other * kRows * kRowBytes +
                                           at_slice(i * 16 + (matrix % 2) * 8 + row, matrix / 2));
            else
                load_terms(term, u + i * 16 * T::kStride + step * kDepth, T::kStride);
#pragma unroll
            for (int part = kTerms - 1; part >= 0; --part)
#pragma unroll
                for (int j = 0; j < kWarpColumns / 8; ++j)
                    multiply(sums[i][j], term[part], columns[j / 2][j % 2 * 2],
                             columns[j / 2][j % 2 * 2 + 1]);
        }
    }
}

/// Selects from `real` rows of u, a warp a row: the codes to values and indices [real, m] unless
/// those are null; if `keep`, z in place of u. Begins and ends without a barrier.
template <int COLUMNS>
__device__ void select_rows(float* u, int real, int p, int m, bool keep, float* values,
                            int64_t* indices) {
    constexpr int V = 4, ITEMS = COLUMNS / 32;
    using T = Tile<COLUMNS>;
    const KeyOf<uint32_t> key_of{kNanF32};
    for (int row = warp_id(); row < real; row += COLUMNS / kWarpColumns) {
        float* const own = u + row * T::kStride;
        int key[ITEMS];
#pragma unroll
        for (int k = 0; k < ITEMS; k += V) {
            const auto pack = *reinterpret_cast<const Pack<float, V>*>(own + entry_of<V>(k));
#pragma unroll
            for (int v = 0; v < V; ++v)
                key[k + v] =
                    entry_of<V>(k + v) < p ? key_of(__float_as_uint(pack.at[v])) : kPadding;
        }
        const uint32_t kept = warp_keep<ITEMS, V>(key, p, m);
        if (values != nullptr) {
            for_each_kept<ITEMS, V>(kept, [&](int item, int rank) {
                values[int64_t(row) * m + rank] = own[entry_of<V>(item)];
                indices[int64_t(row) * m + rank] = entry_of<V>(item);
            });
        }
        if (!keep) continue;
#pragma unroll
        for (int k = 0; k < ITEMS; k += V) {
            auto* const at = reinterpret_cast<Pack<float, V>*>(own + entry_of<V>(k));
            auto pack = *at;
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (!((kept >> (k + v)) & 1u)) pack.at[v] = 0.0f;
            *at = pack;
        }
    }
}

}  // namespace

template <int COLUMNS>
__global__ void __launch_bounds__(Tile<COLUMNS>::kThreads)
    encode_top_m_kernel(const uint16_t* x, const uint16_t* w, const uint16_t* s, int64_t s_stage,
                        int64_t rows, int n, int p, int m, int stages, float* values,
                        int64_t* indices, float* saved_values, int64_t* saved_indices,
                        float* workspace) {
    extern __shared__ uint4 memory[];
    float* const u = reinterpret_cast<float*>(memory);
    using T = Tile<COLUMNS>;
    const int g = lane_id() / 4, t = lane_id() % 4;
    // What a thread writes of x W' only that thread reads: no barrier, and any order will do.
    workspace += int64_t(blockIdx.x) * kRows * COLUMNS + threadIdx.x;
    for (int64_t first = int64_t(blockIdx.x) * kRows; first < rows;
         first += int64_t(gridDim.x) * kRows) {
        const int real = int(min(int64_t(kRows), rows - first));
        Sums sums;
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i)
#pragma unroll
            for (int j = 0; j < kWarpColumns / 8; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sums[i][j][c] = 0.0f;
        add_product<COLUMNS, true>(sums, u, x + first * n, real, w, n);
#pragma unroll 1
        for (int k = 0; k < stages; ++k) {
            const bool last = k + 1 == stages;
            __syncthreads();  // slices of x, or z, are read
#pragma unroll
            for (int i = 0; i < kRows / 16; ++i)
#pragma unroll
                for (int j = 0; j < kWarpColumns / 8; ++j) {
                    float* const at =
                        u + (i * 16 + g) * T::kStride + warp_id() * kWarpColumns + j * 8 + 2 * t;
                    const float (&c)[4] = sums[i][j];
                    *reinterpret_cast<float2*>(at) = make_float2(c[0], c[1]);
                    *reinterpret_cast<float2*>(at + 8 * T::kStride) = make_float2(c[2], c[3]);
                    // The second stage goes on from the sums of the first; later ones start anew.
                    if (k == 0 ? stages > 2 : !last) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            float& kept =
                                workspace[((i * (kWarpColumns / 8) + j) * 4 + e) * T::kThreads];
                            if (k == 0)
                                kept = c[e];
                            else
                                sums[i][j][e] = kept;
                        }
                    }
                }
            __syncthreads();
            float* to = last ? values + first * m : nullptr;
            int64_t* to_indices = last ? indices + first * m : nullptr;
            if (!last && saved_values != nullptr) {
                to = saved_values + (k * rows + first) * m;
                to_indices = saved_indices + (k * rows + first) * m;
            }
            select_rows<COLUMNS>(u, real, p, m, !last, to, to_indices);
            if (!last) add_product<COLUMNS, false>(sums, u, x, real, s + k * s_stage, COLUMNS);
        }
    }
}

namespace {

/// Tiles, or as many blocks as the device holds at once: by their shared memory, and no more than
/// four by their registers.
int64_t blocks_of(int64_t rows, int shared) {
    const Device device = current_device();
    const int64_t each = std::clamp(device.shared_bytes / shared, 1, 4);
    return std::min(ceil_div(rows, kRows), device.multiprocessors * each);
}

/// Calls use(Tile<columns of p>).
template <class Use>
auto with_tile(int64_t p, Use use) {
    switch (persistent_columns(p)) {
        case 128:
            return use(Tile<128>());
        case 256:
            return use(Tile<256>());
        default:
            return use(Tile<512>());
    }
}

template <int COLUMNS>
void run(Tile<COLUMNS>, const PersistentEncoder& a, cudaStream_t stream) {
    using T = Tile<COLUMNS>;
    const char* name = "encode_top_m_kernel";
    const auto kernel = encode_top_m_kernel<COLUMNS>;
    allow_shared(kernel, T::kSharedBytes, 0, name);
    kernel<<<grid_size(blocks_of(a.rows, T::kSharedBytes), name), T::kThreads, T::kSharedBytes,
             stream>>>(static_cast<const uint16_t*>(a.x), static_cast<const uint16_t*>(a.W),
                       static_cast<const uint16_t*>(a.S), a.s_stage, a.rows, int(a.n), int(a.p),
                       int(a.m), a.stages, a.values, a.indices, a.saved_values, a.saved_indices,
                       static_cast<float*>(a.workspace));
    launched(name);
}

}  // namespace

int64_t persistent_most() {
    const int available = current_device().shared_bytes;
    int64_t most = kPersistentP;
    while (most > 0 && with_tile(most, [](auto tile) { return tile.kSharedBytes; }) > available)
        most = most > 128 ? most / 2 : 0;
    return most;
}

size_t persistent_workspace_bytes(int64_t rows, int64_t p, int stages) {
    if (stages <= 2) return 0;
    const int64_t columns = persistent_columns(p);
    return with_tile(p, [&](auto tile) {
        return size_t(blocks_of(rows, tile.kSharedBytes) * kRows * columns * 4);
    });
}

void encode_top_m(const PersistentEncoder& a, cudaStream_t stream) {
    if (a.rows == 0 || a.m == 0) return;
    with_tile(a.p, [&](auto tile) { run(tile, a, stream); });
}

}  // namespace deepl0::cuda
