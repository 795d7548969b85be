// The kernels of top_m.h. Passes: one over global memory for the paths warp and block; those over
// registers or shared memory are counted in select.cuh.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "select.cuh"
#include "top_m.h"
#include "top_m_once.h"

namespace deepl0::cuda {

constexpr int kWarpsPerBlock = 4;  // of the kernels with a warp a row
constexpr int kTile = 2048;        // entries of a row that one block of unpool_kept writes

/// A warp a row. Dense: values is the row of the result, with its mask; else values, indices, which
/// of candidates (MAPPED) `map` has.
template <class Bits, int ITEMS, bool DENSE, bool POSITIVE, bool MAPPED>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    top_m_warp_kernel(const Bits* u, int64_t u_stride, int64_t rows, int p, int m, int nan,
                      Bits* values, int64_t* indices, uint8_t* mask, const int64_t* map) {
    constexpr int V = 16 / sizeof(Bits);
    const int64_t row = int64_t(blockIdx.x) * kWarpsPerBlock + warp_id();
    if (row >= rows) return;
    const KeyOf<Bits> key_of{nan};
    const bool aligned = rows_aligned<Bits, V>(u, u_stride);
    Bits bits[ITEMS];
    int key[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; k += V) {
        const int at = entry_of<V>(k);
        const auto pack = load_pack<V>(u + row * u_stride, at, p, aligned);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            bits[k + v] = selectable<POSITIVE>(pack.at[v], nan);
            key[k + v] = at + v < p ? key_of(bits[k + v]) : kPadding;
        }
    }
    Cut cut = warp_cut(key, p, m);
    if constexpr (DENSE && POSITIVE) cut = cut.above_zero();
    const uint32_t keep = warp_keep<ITEMS, V>(key, cut);
    if constexpr (DENSE) {
        const bool aligned_out = rows_aligned<Bits, V>(values, p);
        const int mask_bytes = (p + 7) / 8;
#pragma unroll
        for (int k = 0; k < ITEMS; k += V) {
            Pack<Bits, V> pack;
#pragma unroll
            for (int v = 0; v < V; ++v) pack.at[v] = (keep >> (k + v)) & 1u ? bits[k + v] : Bits(0);
            store_pack<V>(values + row * p, entry_of<V>(k), p, aligned_out, pack);
            uint32_t byte = (keep >> k) & ((1u << V) - 1u);
            if (V == 4) byte |= __shfl_down_sync(kAllLanes, byte, 1) << 4;
            const int at = entry_of<V>(k) / 8;
            if ((V == 8 || lane_id() % 2 == 0) && at < mask_bytes)
                mask[row * mask_bytes + at] = uint8_t(byte);
        }
    } else {
        for_each_kept<ITEMS, V>(keep, [&](int item, int rank) {
            const int at = ((item / V) * 32 + lane_id()) * V + item % V;
            // bits[item] would leave the registers
            values[row * m + rank] = selectable<POSITIVE>(u[row * u_stride + at], nan);
            indices[row * m + rank] = MAPPED ? map[row * u_stride + at] : at;
        });
    }
}

/// to[0..size) = from[0..size), made selectable, by the whole block, 16 bytes at a time where
/// `from` is aligned; four loads of a thread are in flight. `to` is aligned.
template <bool POSITIVE, class Bits>
__device__ void copy_row(Bits* to, const Bits* from, int size, int nan) {
    constexpr int V = 16 / sizeof(Bits), kLoads = 4;
    const int threads = int(blockDim.x);
    const auto of_pack = [nan](Pack<Bits, V> pack) {
#pragma unroll
        for (int v = 0; v < V; ++v) pack.at[v] = selectable<POSITIVE>(pack.at[v], nan);
        return pack;
    };
    int done = 0;
    if (rows_aligned<Bits, V>(from, 0)) {
        const int packs = size / V;
        auto* to_packs = reinterpret_cast<Pack<Bits, V>*>(to);
        const auto* from_packs = reinterpret_cast<const Pack<Bits, V>*>(from);
        int i = int(threadIdx.x);
        for (; i + (kLoads - 1) * threads < packs; i += kLoads * threads) {
            Pack<Bits, V> pack[kLoads];
#pragma unroll
            for (int k = 0; k < kLoads; ++k) pack[k] = from_packs[i + k * threads];
#pragma unroll
            for (int k = 0; k < kLoads; ++k) to_packs[i + k * threads] = of_pack(pack[k]);
        }
#pragma unroll 1
        for (; i < packs; i += threads) to_packs[i] = of_pack(from_packs[i]);
        done = packs * V;
    }
#pragma unroll 4
    for (int i = done + int(threadIdx.x); i < size; i += threads)
        to[i] = selectable<POSITIVE>(from[i], nan);
}

/// A block a segment of a row, which stands in shared memory, or a row, which is read again for
/// every pass. Segment s of the row has entries [s * segment, (s + 1) * segment) and writes min(m,
/// its entries) results from s * m on; results of a row: out_stride. `map` translates positions
/// into indices: those of candidates.
template <class Bits, bool SHARED, bool DENSE, bool POSITIVE>
__global__ void __launch_bounds__(1024, POSITIVE ? 1 : 0)  // for POSITIVE 32 registers would spill
    top_m_block_kernel(const Bits* u, int64_t u_stride, int p, int segment, int segments, int m,
                       int nan, const int64_t* map, Bits* values, int64_t* indices,
                       int64_t out_stride, uint8_t* mask) {
    __shared__ BlockSelect select;
    extern __shared__ uint4 memory[];
    if (!SHARED) segments = 1;
    const int64_t row = blockIdx.x / segments;
    const int number = int(blockIdx.x % segments), begin = number * segment;
    const int size = min(segment, p - begin);
    const Bits* from = u + row * u_stride + begin;
    const KeyOf<Bits> key_of{nan};
    const Bits* at = from;
    if constexpr (SHARED) {
        auto* copy = reinterpret_cast<Bits*>(memory);
        copy_row<POSITIVE>(copy, from, size, nan);
        __syncthreads();
        at = copy;
    }
    // Shared memory holds what is selected from; global memory is read as it is.
    constexpr bool kRaw = POSITIVE && !SHARED;
    const bool packs = SHARED || rows_aligned<Bits, kTogether>(from, 0);
    const auto keys = [&](int i, int (&key)[kTogether]) {
        keys_of(at, i, size, packs, [&](Bits b) { return key_of(selectable<kRaw>(b, nan)); }, key);
    };
    Cut cut = block_cut<KeyOf<Bits>::kBits>(select, keys, size, m);
    if constexpr (DENSE && POSITIVE) cut = cut.above_zero();
    if constexpr (DENSE) {
        Bits* to = values + row * out_stride;
        const bool packs_out = rows_aligned<Bits, kTogether>(values, out_stride);
        const int mask_bytes = (p + 7) / 8;
        block_for_each(select, keys, size, cut, [&](int i, unsigned keep, int) {
            const unsigned byte = keep | __shfl_down_sync(kAllLanes, keep, 1) << 4;
            if (lane_id() % 2 == 0 && i < size) mask[row * mask_bytes + i / 8] = uint8_t(byte);
            if (i >= size) return;
            auto pack = load_pack<kTogether>(at, i, size, packs);
#pragma unroll
            for (int v = 0; v < kTogether; ++v)
                if (!((keep >> v) & 1u)) pack.at[v] = Bits(0);
            store_pack<kTogether>(to, i, size, packs_out, pack);
        });
    } else {
        const int64_t out = row * out_stride + int64_t(number) * m;
        block_for_each(select, keys, size, cut, [&](int i, unsigned keep, int rank) {
#pragma unroll 1
            for (; keep != 0; keep &= keep - 1) {
                const int j = i + __ffs(int(keep)) - 1;
                values[out + rank] = selectable<kRaw>(at[j], nan);
                indices[out + rank] = map ? map[row * u_stride + begin + j] : begin + j;
                ++rank;
            }
        });
    }
}

/// Writes kTile entries of a dense row and its mask from kept values and ascending indices; where
/// POSITIVE the mask is of those that are not 0.
template <class Bits, bool POSITIVE>
__global__ void __launch_bounds__(256)
    unpool_kept_kernel(const Bits* values, const int64_t* indices, int m, int p, int tiles,
                       Bits* out, uint8_t* mask) {
    __shared__ Bits tile[kTile];
    __shared__ uint32_t kept[kTile / 32];
    const int64_t row = blockIdx.x / tiles;
    const int begin = int(blockIdx.x % tiles) * kTile, size = min(kTile, p - begin);
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    for (int i = thread; i < kTile; i += threads) tile[i] = Bits(0);
    for (int i = thread; i < kTile / 32; i += threads) kept[i] = 0;
    const int64_t* index = indices + row * m;
    int low = 0;
    for (int high = m; low < high;) {
        const int middle = (low + high) / 2;
        if (index[middle] < begin)
            low = middle + 1;
        else
            high = middle;
    }
    __syncthreads();
    for (int j = low + thread; j < m && index[j] < begin + size; j += threads) {
        const int i = int(index[j]) - begin;
        const Bits value = values[row * m + j];
        tile[i] = value;
        if (!POSITIVE || value != 0) atomicOr(&kept[i / 32], 1u << (i % 32));
    }
    __syncthreads();
    for (int i = thread; i < size; i += threads) out[row * p + begin + i] = tile[i];
    const int mask_bytes = (p + 7) / 8, from = begin / 8;
    for (int b = thread; b < (size + 7) / 8; b += threads)
        mask[row * mask_bytes + from + b] = uint8_t(kept[b / 4] >> (b % 4 * 8));
}

template <class Bits>
__global__ void __launch_bounds__(256)
    unpool_kernel(const Bits* values, const int64_t* indices, int64_t entries, int m, int64_t size,
                  Bits* out) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= entries) return;
    const int64_t i = indices[e];
    if (i < 0 || i >= size) __trap();
    out[e / m * size + i] = values[e];
}

/// A thread a byte of the mask.
template <class Bits>
__global__ void __launch_bounds__(256)
    apply_mask_kernel(const Bits* u, int64_t u_stride, const uint8_t* mask, int64_t bytes, int p,
                      Bits* out) {
    constexpr int V = 16 / sizeof(Bits);
    const int64_t b = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (b >= bytes) return;
    const int row_bytes = (p + 7) / 8;
    const int64_t row = b / row_bytes;
    const int begin = int(b % row_bytes) * 8;
    const bool aligned = rows_aligned<Bits, V>(u, u_stride);
    const bool aligned_out = rows_aligned<Bits, V>(out, p);
    const unsigned keep = mask[b];
#pragma unroll
    for (int half = 0; half < 8; half += V) {
        auto pack = load_pack<V>(u + row * u_stride, begin + half, p, aligned);
#pragma unroll
        for (int v = 0; v < V; ++v)
            if (!((keep >> (half + v)) & 1u)) pack.at[v] = Bits(0);
        store_pack<V>(out + row * p, begin + half, p, aligned_out, pack);
    }
}

namespace {

template <class Bits>
struct Problem {
    const Bits* u;
    int64_t u_stride, rows;
    int p, m, nan;
    const int64_t* map;  // of candidates, else null
    Bits* values;        // with DENSE, the dense result
    int64_t* indices;
    uint8_t* mask;
    bool once;  // whether long rows are read once
    cudaStream_t stream;
};

template <int ITEMS, bool DENSE, bool POSITIVE, bool MAPPED, class Bits>
void launch_warp(const Problem<Bits>& a) {
    const char* name = "top_m_warp_kernel";
    top_m_warp_kernel<Bits, ITEMS, DENSE, POSITIVE, MAPPED>
        <<<grid_size(ceil_div(a.rows, kWarpsPerBlock), name), 32 * kWarpsPerBlock, 0, a.stream>>>(
            a.u, a.u_stride, a.rows, a.p, a.m, a.nan, a.values, a.indices, a.mask, a.map);
    launched(name);
}

template <bool DENSE, bool POSITIVE, bool MAPPED, class Bits>
void launch_warps(const Problem<Bits>& a) {
    if constexpr (sizeof(Bits) == 4) {
        if (a.p <= 128) return launch_warp<4, DENSE, POSITIVE, MAPPED>(a);
    }
    if (a.p <= 256) return launch_warp<8, DENSE, POSITIVE, MAPPED>(a);
    if (a.p <= 512) return launch_warp<16, DENSE, POSITIVE, MAPPED>(a);
    launch_warp<32, DENSE, POSITIVE, MAPPED>(a);
}

template <bool SHARED, bool DENSE, bool POSITIVE, class Bits>
void launch_block(const Problem<Bits>& a, int segment, int64_t out_stride) {
    const char* name = "top_m_block_kernel";
    const auto kernel = top_m_block_kernel<Bits, SHARED, DENSE, POSITIVE>;
    const int64_t segments = ceil_div(a.p, segment);
    const size_t shared = SHARED ? ceil_div(segment * sizeof(Bits), 16) * 16 : 0;
    allow_shared(kernel, shared, sizeof(BlockSelect), name);
    // Few threads: what a warp does once a digit is a third of its work on short rows.
    const int threads = segment <= 8192 ? 256 : 512;
    kernel<<<grid_size(a.rows * segments, name), threads, shared, a.stream>>>(
        a.u, a.u_stride, a.p, segment, int(segments), a.m, a.nan, a.map, a.values, a.indices,
        out_stride, a.mask);
    launched(name);
}

/// Entries that the segments of a row of p leave.
int64_t candidates_of(int64_t p, int64_t segment, int64_t m) {
    const int64_t last = p - (ceil_div(p, segment) - 1) * segment;
    return (ceil_div(p, segment) - 1) * m + std::min(m, last);
}

/// Bytes of the candidates of one level: values, then indices, each at a multiple of 16.
size_t level_bytes(int64_t entries, size_t element) {
    return size_t(ceil_div(entries * element, 16) * 16 + ceil_div(entries * 8, 16) * 16);
}

std::atomic<bool>& once() {
    static std::atomic<bool> on{[] {
        const char* word = std::getenv("DEEPL0_CUDA_ONCE");
        return word != nullptr && std::strcmp(word, "1") == 0;
    }()};
    return on;
}

template <bool DENSE, bool POSITIVE, class Bits>
void launch(const Problem<Bits>& a, const Plan& plan, int64_t out_stride) {
    switch (plan.path) {
        case Path::warp:
            if (a.map == nullptr) return launch_warps<DENSE, POSITIVE, false>(a);
            // Where rows are not read once, candidates are selected from as they were measured.
            if (!a.once) return launch_block<true, false, false>(a, a.p, out_stride);
            return launch_warps<false, false, true>(a);
        case Path::block:
            return launch_block<true, DENSE, POSITIVE>(a, plan.segment, out_stride);
        case Path::stream:
            return launch_block<false, DENSE, POSITIVE>(a, plan.segment, out_stride);
        case Path::once:
            return top_m_once({sizeof(Bits), a.u, a.u_stride, a.rows, a.p, plan.segment, a.m, a.nan,
                               POSITIVE, a.map, a.values, a.indices, out_stride, a.mask, a.stream});
    }
}

template <bool POSITIVE, class Bits>
void select_codes(Problem<Bits> a, DType dtype, const Device& device, char* workspace) {
    const Plan plan = plan_top_m(dtype, a.rows, a.p, a.m, a.once, device);
    if (plan.segment == a.p) return launch<false, POSITIVE>(a, plan, a.m);
    const int64_t left = candidates_of(a.p, plan.segment, a.m), entries = a.rows * left;
    Problem<Bits> first = a;
    first.values = reinterpret_cast<Bits*>(workspace);
    first.indices =
        reinterpret_cast<int64_t*>(workspace + ceil_div(entries * sizeof(Bits), 16) * 16);
    launch<false, POSITIVE>(first, plan, left);
    Problem<Bits> rest = a;
    rest.u = first.values;
    rest.map = first.indices;
    rest.u_stride = left;
    rest.p = int(left);
    // Candidates are max(u, 0) already.
    select_codes<false>(rest, dtype, device, workspace + level_bytes(entries, sizeof(Bits)));
}

template <bool POSITIVE, class Bits>
void select_dense(Problem<Bits> a, DType dtype, const Device& device, char* workspace) {
    const Plan plan = plan_top_m(dtype, a.rows, a.p, a.m, a.once, device);
    if (plan.segment == a.p) return launch<true, POSITIVE>(a, plan, a.p);
    const int64_t entries = a.rows * a.m;
    Problem<Bits> codes = a;
    codes.mask = nullptr;
    codes.values = reinterpret_cast<Bits*>(workspace);
    codes.indices =
        reinterpret_cast<int64_t*>(workspace + ceil_div(entries * sizeof(Bits), 16) * 16);
    select_codes<POSITIVE>(codes, dtype, device, workspace + level_bytes(entries, sizeof(Bits)));
    const char* name = "unpool_kept_kernel";
    const int64_t tiles = ceil_div(a.p, kTile);
    unpool_kept_kernel<Bits, POSITIVE><<<grid_size(a.rows * tiles, name), 256, 0, a.stream>>>(
        codes.values, codes.indices, a.m, a.p, int(tiles), a.values, a.mask);
    launched(name);
}

int nan_key(DType dtype) {
    return dtype == DType::f32 ? kNanF32 : dtype == DType::f16 ? kNanF16 : kNanBF16;
}

template <class Bits>
void run_top_m(DType dtype, const void* u, int64_t u_stride, int64_t rows, int64_t p, int64_t m,
               bool positive, void* values, int64_t* indices, uint8_t* mask, void* workspace,
               cudaStream_t stream) {
    const Problem<Bits> a{
        static_cast<const Bits*>(u), u_stride, rows, int(p), int(m), nan_key(dtype), nullptr,
        static_cast<Bits*>(values),  indices,  mask, once(), stream};
    const auto select = positive ? mask ? select_dense<true, Bits> : select_codes<true, Bits>
                        : mask   ? select_dense<false, Bits>
                                 : select_codes<false, Bits>;
    select(a, dtype, current_device(), static_cast<char*>(workspace));
}

/// Calls run(uint16_t()) or run(uint32_t()) for elements of that many bytes.
template <class Run>
void by_element(size_t element, Run run) {
    if (element == 4) return run(uint32_t());
    if (element == 2) return run(uint16_t());
    throw std::runtime_error("the CUDA kernels have elements of 2 and 4 bytes only");
}

}  // namespace

void probe() {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, apply_mask_kernel<uint32_t>), "apply_mask_kernel");
}

Plan plan_top_m(DType dtype, int64_t rows, int64_t p, int64_t m, bool once, const Device& device) {
    if (once) {
        const int64_t segment = once_segment(size_of(dtype), rows, p, m, device);
        if (segment != 0) return {Path::once, int(segment)};
    }
    if (p <= 1024) return {Path::warp, int(p)};
    const int64_t two = device.shared_bytes / 2 - int64_t(sizeof(BlockSelect));
    const int64_t fit = std::max<int64_t>(two, 2048) / int64_t(size_of(dtype)) / 32 * 32;
    const bool idle = 2 * rows <= device.multiprocessors;
    if (p <= fit && !(idle && p >= 16384)) return {Path::block, int(p)};
    // Short enough for every multiprocessor to have one; else long, for few candidates.
    const int64_t segment = rows * ceil_div(p, 8192) < device.multiprocessors ? 4096 : 8192;
    const int64_t length = std::min(fit, std::max(segment, ceil_div(32 * m, 1024) * 1024));
    if (length < 4 * m || length >= p) return {p <= fit ? Path::block : Path::stream, int(p)};
    return {Path::block, int(length)};
}

bool read_rows_once(bool on) { return once().exchange(on); }

size_t top_m_workspace_bytes(DType dtype, int64_t rows, int64_t p, int64_t m, bool keep) {
    if (rows == 0 || m == 0) return 0;
    const Device device = current_device();
    const size_t element = size_of(dtype);
    const auto levels = [&](bool once) {
        size_t bytes = 0;
        for (int64_t length = p;;) {
            const int64_t segment = plan_top_m(dtype, rows, length, m, once, device).segment;
            if (segment == length) return bytes;
            if (length == p && keep) bytes += level_bytes(rows * m, element);
            length = candidates_of(length, segment, m);
            bytes += level_bytes(rows * length, element);
        }
    };
    // The switch may be turned between this and the launch.
    return std::max(levels(false), levels(true));
}

void top_m(DType dtype, const void* u, int64_t u_stride, int64_t rows, int64_t p, int64_t m,
           bool positive, void* values, int64_t* indices, void* workspace, cudaStream_t stream) {
    if (rows == 0 || m == 0) return;
    by_element(size_of(dtype), [&](auto bits) {
        run_top_m<decltype(bits)>(dtype, u, u_stride, rows, p, m, positive, values, indices,
                                  nullptr, workspace, stream);
    });
}

void keep_top_m(DType dtype, const void* u, int64_t u_stride, int64_t rows, int64_t p, int64_t m,
                bool positive, void* out, uint8_t* mask, void* workspace, cudaStream_t stream) {
    if (rows == 0 || p == 0) return;
    if (m == 0) {
        check(cudaMemsetAsync(out, 0, size_t(rows * p) * size_of(dtype), stream), "keep_top_m");
        check(cudaMemsetAsync(mask, 0, size_t(rows * ceil_div(p, 8)), stream), "keep_top_m");
        return;
    }
    by_element(size_of(dtype), [&](auto bits) {
        run_top_m<decltype(bits)>(dtype, u, u_stride, rows, p, m, positive, out, nullptr, mask,
                                  workspace, stream);
    });
}

void unpool(size_t element, const void* values, const int64_t* indices, int64_t rows, int64_t m,
            int64_t size, void* out, cudaStream_t stream) {
    if (rows == 0 || size == 0) return;
    check(cudaMemsetAsync(out, 0, size_t(rows * size) * element, stream), "unpool");
    if (m == 0) return;
    by_element(element, [&](auto bits) {
        using Bits = decltype(bits);
        const char* name = "unpool_kernel";
        unpool_kernel<Bits><<<grid_size(ceil_div(rows * m, 256), name), 256, 0, stream>>>(
            static_cast<const Bits*>(values), indices, rows * m, int(m), size,
            static_cast<Bits*>(out));
        launched(name);
    });
}

void apply_mask(size_t element, const void* u, int64_t u_stride, const uint8_t* mask, int64_t rows,
                int64_t p, void* out, cudaStream_t stream) {
    const int64_t bytes = rows * ceil_div(p, 8);
    if (bytes == 0) return;
    by_element(element, [&](auto bits) {
        using Bits = decltype(bits);
        const char* name = "apply_mask_kernel";
        apply_mask_kernel<Bits><<<grid_size(ceil_div(bytes, 256), name), 256, 0, stream>>>(
            static_cast<const Bits*>(u), u_stride, mask, bytes, int(p), static_cast<Bits*>(out));
        launched(name);
    });
}

}  // namespace deepl0::cuda
