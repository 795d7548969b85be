// The kernels of batch_top_m.h.
#include "batch_top_m.h"
#include "element.cuh"

namespace deepl0::cuda {

constexpr int kPiece = 2048;  // entries of a row that a warp counts and writes
constexpr int kWarps = 4;     // of a block that counts or writes
constexpr int kPack = 4;      // entries that a lane loads at a time
constexpr int kBins = 2048;   // of the widest digit
constexpr int kScan = 1024;   // threads of the kernels of one block

/// The search for the cut: `need` entries are wanted of those whose key begins with `prefix`. Once
/// it is found, what is kept: keys above `key`, and of those equal to it the first `need`.
struct BatchState {
    unsigned long long need;
    int prefix, key, found;
};

/// A piece of a row: of all pieces, `segments` a row, the one of that number.
template <class Bits, bool POSITIVE>
struct Piece {
    const Bits* from;
    int begin, size, nan;
    bool aligned;

    __device__ Piece(const Bits* u, int64_t u_stride, int p, int segments, int nan, int64_t number)
        : begin(int(number % segments) * kPiece),
          size(min(kPiece, p - begin)),
          nan(nan),
          aligned(rows_aligned<Bits, kPack>(u, u_stride)) {
        from = u + number / segments * u_stride + begin;
    }

    /// Four entries from i on as they are returned, and their keys; padding from `size` on.
    __device__ Pack<Bits, kPack> load(int i, int (&key)[kPack]) const {
        auto pack = load_pack<kPack>(from, i, size, aligned);
        const KeyOf<Bits> key_of{nan};
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
            pack.at[v] = selectable<POSITIVE>(pack.at[v], nan);
            key[v] = i + v < size ? key_of(pack.at[v]) : kPadding;
        }
        return pack;
    }
};

/// bins[d] += entries of the prefix whose next digit, of `width` bits above `shift`, is d.
template <class Bits, bool POSITIVE>
__global__ void __launch_bounds__(256)
    batch_histogram_kernel(const Bits* u, int64_t u_stride, int64_t pieces, int p, int segments,
                           int nan, int shift, int width, const BatchState* state,
                           unsigned long long* bins) {
    __shared__ int own[kBins];
    if (state->found) return;
    const int count = 1 << width, base = state->prefix << width;
    for (int b = int(threadIdx.x); b < count; b += int(blockDim.x)) own[b] = 0;
    __syncthreads();
    for (int64_t i = blockIdx.x; i < pieces; i += gridDim.x) {
        const Piece<Bits, POSITIVE> piece(u, u_stride, p, segments, nan, i);
#pragma unroll 2
        for (int at = int(threadIdx.x) * kPack; at < piece.size; at += int(blockDim.x) * kPack) {
            int key[kPack];
            piece.load(at, key);
#pragma unroll
            for (int v = 0; v < kPack; ++v) {
                const unsigned digit = unsigned((key[v] >> shift) - base);
                if (digit < unsigned(count)) atomicAdd(&own[digit], 1);
            }
        }
    }
    __syncthreads();
    for (int b = int(threadIdx.x); b < count; b += int(blockDim.x))
        if (own[b] != 0) atomicAdd(&bins[b], (unsigned long long)(own[b]));
}

/// The sum of n over the threads up to this one, of a block of kScan; a barrier before the next.
__device__ inline unsigned long long scanned(unsigned long long n) {
    __shared__ unsigned long long totals[kScan / 32];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const unsigned long long other = __shfl_up_sync(kAllLanes, n, d);
        if (lane_id() >= d) n += other;
    }
    if (lane_id() == 31) totals[warp_id()] = n;
    __syncthreads();
    for (int w = 0; w < warp_id(); ++w) n += totals[w];
    return n;
}

/// The digit of the cut from its histogram, which is left zero. The top one is looked for in a
/// state of zeros.
__global__ void __launch_bounds__(kScan)
    batch_digit_kernel(int64_t m, bool top, int shift, int width, unsigned long long* bins,
                       BatchState* state) {
    static_assert(kBins == 2 * kScan, "two bins a thread");
    BatchState before = *state;
    if (before.found) return;
    if (top) before.need = (unsigned long long)(m);
    // Thread 0 has the highest bins.
    const int high = (1 << width) - 1 - 2 * int(threadIdx.x);
    unsigned long long first = 0, second = 0;
    if (high > 0) {
        first = bins[high];
        second = bins[high - 1];
        bins[high] = bins[high - 1] = 0;
    }
    // Its barrier: all have read the state before one writes it.
    const unsigned long long reached = scanned(first + second);
    unsigned long long above = reached - first - second;
    if (!(above < before.need && before.need <= reached)) return;
    const bool is_first = before.need <= above + first;
    if (!is_first) above += first;
    const int prefix = before.prefix << width | (is_first ? high : high - 1);
    const unsigned long long need = before.need - above;
    // All entries of the digit: those above the largest key below it.
    const bool whole = need == (is_first ? first : second);
    *state = {whole ? 0 : need, prefix, whole ? (prefix << shift) - 1 : prefix,
              whole || shift == 0};
}

/// counts[i]: the keys of piece i above that of the cut, and equal to it.
template <class Bits, bool POSITIVE>
__global__ void __launch_bounds__(32 * kWarps)
    batch_count_kernel(const Bits* u, int64_t u_stride, int64_t pieces, int p, int segments,
                       int nan, const BatchState* state, int2* counts) {
    const int64_t i = int64_t(blockIdx.x) * kWarps + warp_id();
    if (i >= pieces) return;
    const Piece<Bits, POSITIVE> piece(u, u_stride, p, segments, nan, i);
    const int cut = state->key;
    int above = 0, ties = 0;
#pragma unroll 4
    for (int at = lane_id() * kPack; at < piece.size; at += 32 * kPack) {
        int key[kPack];
        piece.load(at, key);
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
            above += key[v] > cut;
            ties += key[v] == cut;
        }
    }
    above = __reduce_add_sync(kAllLanes, above);
    ties = __reduce_add_sync(kAllLanes, ties);
    if (lane_id() == 0) counts[i] = make_int2(above, ties);
}

/// places[i]: where piece i writes; counts[i].y: how many of its ties it keeps; offsets of the
/// rows.
__global__ void __launch_bounds__(kScan)
    batch_place_kernel(int64_t pieces, int segments, int64_t m, const BatchState* state,
                       int2* counts, int64_t* places, int64_t* offsets) {
    const int64_t each = (pieces + kScan - 1) / kScan;
    const int64_t begin = min(pieces, each * int(threadIdx.x)), end = min(pieces, begin + each);
    unsigned long long above = 0, ties = 0;
    for (int64_t i = begin; i < end; ++i) {
        above += unsigned(counts[i].x);
        ties += unsigned(counts[i].y);
    }
    above = scanned(above) - above;
    __syncthreads();
    ties = scanned(ties) - ties;
    const unsigned long long wanted = state->need;
    for (int64_t i = begin; i < end; ++i) {
        const int2 n = counts[i];
        const unsigned long long taken = min(ties, wanted);
        places[i] = int64_t(above + taken);
        counts[i].y = int(min(wanted - taken, (unsigned long long)(n.y)));
        if (i % segments == 0) offsets[i / segments] = int64_t(above + taken);
        above += unsigned(n.x);
        ties += unsigned(n.y);
    }
    if (threadIdx.x == 0) offsets[pieces / segments] = m;
}

/// How many lanes below have a bit of their n set, weighted: the sum of n <= 7 over them; `all`
/// gets that over all lanes.
__device__ inline int sum_before(int n, int& all) {
    int before = 0;
    all = 0;
#pragma unroll
    for (int bit = 0; bit < 3; ++bit) {
        const unsigned lanes = __ballot_sync(kAllLanes, (n >> bit) & 1);
        before += __popc(lanes & lanes_below()) << bit;
        all += __popc(lanes) << bit;
    }
    return before;
}

template <class Bits, bool POSITIVE>
__global__ void __launch_bounds__(32 * kWarps)
    batch_write_kernel(const Bits* u, int64_t u_stride, int64_t pieces, int p, int segments,
                       int nan, const BatchState* state, const int2* counts, const int64_t* places,
                       Bits* values, int64_t* indices) {
    const int64_t i = int64_t(blockIdx.x) * kWarps + warp_id();
    if (i >= pieces) return;
    const int2 count = counts[i];
    int ties = count.y, left = count.x + count.y;
    if (left == 0) return;
    const Piece<Bits, POSITIVE> piece(u, u_stride, p, segments, nan, i);
    const int cut = state->key;
    int64_t place = places[i];
    for (int first = 0; left > 0 && first < piece.size; first += 32 * kPack) {
        const int at = first + lane_id() * kPack;
        int key[kPack];
        const auto pack = piece.load(at, key);
        int keep = 0, all = 0;
#pragma unroll
        for (int v = 0; v < kPack; ++v) keep |= int(key[v] > cut) << v;
        if (ties > 0) {
            int tied = 0;
#pragma unroll
            for (int v = 0; v < kPack; ++v) tied |= int(key[v] == cut) << v;
            int rank = sum_before(__popc(tied), all);
#pragma unroll
            for (int v = 0; v < kPack; ++v)
                if ((tied >> v) & 1) keep |= int(rank++ < ties) << v;
            ties -= all;
        }
        int64_t to = place + sum_before(__popc(keep), all);
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
            if (!((keep >> v) & 1)) continue;
            values[to] = pack.at[v];
            indices[to++] = piece.begin + at + v;
        }
        place += all;
        left -= all;
    }
}

namespace {

/// The parts of a workspace; all elements are of 8 bytes.
struct Workspace {
    static constexpr size_t kZeroed = sizeof(BatchState) + kBins * sizeof(unsigned long long);
    BatchState* state;
    unsigned long long* bins;
    int64_t* places;
    int2* counts;

    Workspace(void* memory, int64_t pieces) {
        state = static_cast<BatchState*>(memory);
        bins = reinterpret_cast<unsigned long long*>(state + 1);
        places = reinterpret_cast<int64_t*>(bins + kBins);
        counts = reinterpret_cast<int2*>(places + pieces);
    }
    static size_t bytes(int64_t pieces) { return kZeroed + size_t(pieces) * 16; }
};

template <class Bits>
struct Problem {
    const Bits* u;
    int64_t u_stride, pieces;
    int p, segments, nan;
};

template <class Bits, bool POSITIVE>
void run(const Problem<Bits>& a, int64_t m, Bits* values, int64_t* indices, int64_t* offsets,
         void* memory, cudaStream_t stream) {
    const Workspace ws(memory, a.pieces);
    check(cudaMemsetAsync(ws.state, 0, Workspace::kZeroed, stream), "batch_top_m");
    const int64_t fill = 8 * int64_t(current_device().multiprocessors);
    const unsigned blocks = unsigned(std::min(a.pieces, fill));
    constexpr int kKey = KeyOf<Bits>::kBits;
    for (int shift = kKey; shift > 0;) {
        const int width = kKey == 31 ? (shift == 31 ? 11 : 10) : (shift == 15 ? 8 : 7);
        shift -= width;
        batch_histogram_kernel<Bits, POSITIVE><<<blocks, 256, 0, stream>>>(
            a.u, a.u_stride, a.pieces, a.p, a.segments, a.nan, shift, width, ws.state, ws.bins);
        launched("batch_histogram_kernel");
        batch_digit_kernel<<<1, kScan, 0, stream>>>(m, shift + width == kKey, shift, width, ws.bins,
                                                    ws.state);
        launched("batch_digit_kernel");
    }
    const unsigned warps = grid_size(ceil_div(a.pieces, kWarps), "batch_count_kernel");
    batch_count_kernel<Bits, POSITIVE><<<warps, 32 * kWarps, 0, stream>>>(
        a.u, a.u_stride, a.pieces, a.p, a.segments, a.nan, ws.state, ws.counts);
    launched("batch_count_kernel");
    batch_place_kernel<<<1, kScan, 0, stream>>>(a.pieces, a.segments, m, ws.state, ws.counts,
                                                ws.places, offsets);
    launched("batch_place_kernel");
    batch_write_kernel<Bits, POSITIVE>
        <<<warps, 32 * kWarps, 0, stream>>>(a.u, a.u_stride, a.pieces, a.p, a.segments, a.nan,
                                            ws.state, ws.counts, ws.places, values, indices);
    launched("batch_write_kernel");
}

}  // namespace

size_t batch_top_m_workspace_bytes(int64_t rows, int64_t p) {
    return Workspace::bytes(rows * ceil_div(p, kPiece));
}

void batch_top_m(DType dtype, const void* u, int64_t u_stride, int64_t rows, int64_t p, int64_t m,
                 bool positive, void* values, int64_t* indices, int64_t* offsets, void* workspace,
                 cudaStream_t stream) {
    if (m == 0) {
        check(cudaMemsetAsync(offsets, 0, size_t(rows + 1) * sizeof(int64_t), stream),
              "batch_top_m");
        return;
    }
    const auto start = [&](auto bits, int nan) {
        using Bits = decltype(bits);
        const int segments = int(ceil_div(p, kPiece));
        const Problem<Bits> a{
            static_cast<const Bits*>(u), u_stride, rows * segments, int(p), segments, nan};
        const auto run_it = positive ? run<Bits, true> : run<Bits, false>;
        run_it(a, m, static_cast<Bits*>(values), indices, offsets, workspace, stream);
    };
    switch (dtype) {
        case DType::f32:
            return start(uint32_t(), kNanF32);
        case DType::f16:
            return start(uint16_t(), kNanF16);
        case DType::bf16:
            return start(uint16_t(), kNanBF16);
    }
}

}  // namespace deepl0::cuda
