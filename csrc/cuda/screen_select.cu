// Steps 3 and 4 of screen.h: what may be among the m largest, computed in float32 and selected.
#include "screen.cuh"
#include "select.cuh"

namespace deepl0::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 4;  // dot products of a warp

/// dots[j] = <x, w[j]>, the same in all lanes: lane l adds the terms 128 i + 4 l + v, i and then v
/// ascending, by fused multiply-adds; then the lanes by halves. Bytes: 4 n of each.
__device__ void dots(const float* x, const float* const (&w)[kAtOnce], int n, bool aligned,
                     float (&sum)[kAtOnce]) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum[j] = 0.0f;
#pragma unroll 1
    for (int k = 4 * lane_id(); k < n; k += 128) {
        const auto a = load_pack<4>(x, k, n, aligned);
        Pack<float, 4> b[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) b[j] = load_pack<4>(w[j], k, n, aligned);
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
            for (int v = 0; v < 4; ++v) sum[j] = fmaf(a.at[v], b[j].at[v], sum[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum[j] = warp_sum(sum[j]);
}

/// W x + b of a row, by warps: of `count` units, unit_of(i), i < count, use(i, value).
template <class UnitOf, class Use>
__device__ void compute(const float* x, const float* w, int64_t w_stride, const float* bias, int n,
                        int count, UnitOf unit_of, Use use) {
    const bool aligned = rows_aligned<float, 4>(x, 0) && rows_aligned<float, 4>(w, w_stride);
#pragma unroll 1
    for (int i = kAtOnce * warp_id(); i < count; i += kAtOnce * (kThreads / 32)) {
        const float* rows[kAtOnce];
        float sum[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) rows[j] = w + unit_of(min(i + j, count - 1)) * w_stride;
        dots(x, rows, n, aligned, sum);
        float mine = sum[0];
#pragma unroll
        for (int j = 1; j < kAtOnce; ++j) mine = lane_id() == j ? sum[j] : mine;
        const int at = i + lane_id();
        if (lane_id() >= kAtOnce || at >= count) continue;
        if (bias) mine += bias[unit_of(at)];
        use(at, mine);
    }
}

}  // namespace

/// A block a row: candidates, their exact values, the m best of them. `undecided`: a count, and
/// then the rows that are to be computed throughout.
template <bool POSITIVE>
__global__ void __launch_bounds__(kThreads, 4)
    screen_select_kernel(const Top* tops, int64_t top_stride, const float4* units,
                         const float2* of_rows, const float* x, int64_t x_stride, const float* w,
                         int64_t w_stride, const float* bias, const float* z,
                         const int64_t* z_units, int z_m, int n, int p, int m, int room,
                         float* values, int64_t* indices, int* undecided) {
    __shared__ BlockSelect select;
    __shared__ int count, raised;
    extern __shared__ uint32_t memory[];
    auto* unit = reinterpret_cast<int*>(memory);  // of candidates: first z's, then in no order
    uint32_t* bits = memory + room;               // their values
    uint32_t* marked = bits + room;               // a bit a group that z has an entry in
    const int thread = int(threadIdx.x), groups = (p + kGroup - 1) / kGroup;
    const int64_t row = blockIdx.x;
    const Top* top = tops + row * top_stride;
    const float2 of_row = of_rows[row];
    const float c = summation_factor(n), tiny = underflow_term(n);
    const auto bound = [&](int g) {
        const float4 u = units[g];
        return of_row.x * u.x + of_row.y * u.y + (c * u.z + tiny);
    };
    const auto give_up = [&] {
        if (thread == 0) undecided[1 + atomicAdd(undecided, 1)] = int(row);
    };
    if (!(of_row.x >= 0.0f)) return give_up();

    const KeyOf<uint32_t> key_of{kNanF32};
    const float* from = x + row * x_stride;
    const auto compute_from = [&](int begin, int end) {
        compute(
            from, w, w_stride, bias, n, end - begin, [&](int i) { return unit[begin + i]; },
            [&](int i, float u) {
                if (begin + i < z_m) u += z[row * z_m + i];
                bits[begin + i] = selectable<POSITIVE>(__float_as_uint(u), kNanF32);
            });
    };
    // The entries of z are candidates from the start: their approximations are without z.
    if (thread == 0) count = z_m;
    if (z_m > 0) {
        for (int i = thread; i < (groups + 31) / 32; i += kThreads) marked[i] = 0;
        for (int i = thread; i < z_m; i += kThreads) unit[i] = int(z_units[row * z_m + i]);
        __syncthreads();
        for (int i = thread; i < z_m; i += kThreads) {
            const int g = unit[i] / kGroup;
            atomicOr(&marked[g / 32], 1u << (g % 32));
        }
        compute_from(0, z_m);  // read behind the next barrier, the cut's or the one after it
    }
    const auto is_marked = [&](int g) {
        return z_m > 0 && ((marked[g / 32] >> (g % 32)) & 1u) != 0;
    };
    const auto is_of_z = [&](int i) {
        int low = 0;
        for (int high = z_m; low < high;) {
            const int middle = (low + high) / 2;
            if (unit[middle] < i)
                low = middle + 1;
            else
                high = middle;
        }
        return low < z_m && unit[low] == i;
    };
    // The first of a group is at least so large; of a bound that is infinite that is 0, and of a
    // group of z, whose first may be z's, too.
    const auto lower = [&](int g, Top t, float e) {
        return is_marked(g) ? 0.0f : fmaxf(below<POSITIVE>(t.first) - e, 0.0f);
    };
    const int whole = (groups + kTogether - 1) / kTogether * kTogether;  // behind them z's
    const auto keys = [&](int i, int (&key)[kTogether]) {
        if (i >= whole) {
#pragma unroll
            for (int v = 0; v < kTogether; ++v)
                key[v] = i + v < whole + z_m ? key_of(bits[i + v - whole]) : kPadding;
            return;
        }
        const auto pack = *reinterpret_cast<const Pack<Top, kTogether>*>(top + i);
#pragma unroll
        for (int v = 0; v < kTogether; ++v)
            key[v] =
                i + v < groups ? __float_as_int(lower(i + v, pack.at[v], bound(i + v))) : kPadding;
    };
    Cut cut{-1, 0};
    if (m < groups + z_m) cut = block_cut<31>(select, keys, whole + z_m, m);
    // m entries are at least so large. Of nonnegative codes what is not > 0 is no candidate.
    const int proven = max(cut.key + (cut.ties == 0), POSITIVE ? 1 : 0);
    const float least = __int_as_float(proven);
    if (thread == 0) raised = proven;
    __syncthreads();
    const auto push = [&](int g, int place) {
        const int i = g * kGroup + place;
        if (i >= p) return;
        const int to = atomicAdd(&count, 1);
        if (to < room) unit[to] = i;
    };
    const auto first_place = [](Top t) { return t.first & (kGroup - 1); };
    // How many of `size` candidates are before candidate i.
    const auto rank_of = [&](int i, int size) {
        const int key = key_of(bits[i]), at = unit[i];
        int better = 0;
#pragma unroll 4
        for (int j = 0; j < size; ++j) {
            const int other = key_of(bits[j]);
            better += other > key || (other == key && unit[j] < at);
        }
        return better;
    };

    // First those that are surely so large: their m-th value is a better bound for the others.
    const auto is_sure = [&](int g, Top t, float e) {
        return !is_marked(g) && lower(g, t, e) >= least;
    };
#pragma unroll 1
    for (int g = thread; g < groups; g += kThreads)
        if (is_sure(g, top[g], bound(g))) push(g, first_place(top[g]));
    __syncthreads();
    const int sure = count;
    if (sure > room) return give_up();
    compute_from(z_m, sure);
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < sure; i += kThreads)
        if (rank_of(i, sure) == m - 1) raised = max(proven, key_of(bits[i]));
    __syncthreads();
    const float needed = __int_as_float(raised);
#pragma unroll 1
    for (int g = thread; g < groups; g += kThreads) {
        const Top t = top[g];
        const float e = bound(g);
        if (above<POSITIVE>(t.first) + e < needed) continue;
        const bool with_z = is_marked(g);
        const auto push_other = [&](int place) {
            if (!(with_z && is_of_z(g * kGroup + place))) push(g, place);
        };
        if (!is_sure(g, t, e)) push_other(first_place(t));
        if (above<POSITIVE>(t.second) + e < needed) continue;
#pragma unroll 1
        for (int i = 0; i < kGroup; ++i)
            if (i != first_place(t)) push_other(i);
    }
    __syncthreads();
    const int candidates = count;
    if (candidates > room || (!POSITIVE && candidates < m)) return give_up();
    compute_from(sure, candidates);
    int nonzero = 0;
    __syncthreads();
    if constexpr (POSITIVE) {
        for (int i = thread; i < candidates; i += kThreads) nonzero += key_of(bits[i]) > 0;
        nonzero = threads_before(select, nonzero) + nonzero;
        if (thread == kThreads - 1) count = nonzero;
        __syncthreads();
        nonzero = count;
    }
    // Where fewer are positive: these, and zeros at the first of all other units.
    const int zeros = POSITIVE ? max(m - nonzero, 0) : 0;
    unsigned kept = 0;  // bit j: candidate thread + 256 j
#pragma unroll 1
    for (int i = thread; i < candidates; i += kThreads) {
        const bool best = rank_of(i, candidates) < m && (zeros == 0 || key_of(bits[i]) > 0);
        kept |= unsigned(best) << (i / kThreads);
    }
    __syncthreads();
    constexpr int kNone = INT32_MAX;
    for (int i = thread; i < candidates; i += kThreads)
        if (!((kept >> (i / kThreads)) & 1u)) unit[i] = kNone;
    __syncthreads();
    const int64_t out = row * m;
    const auto kept_below = [&](int at) {
        int rank = 0;
#pragma unroll 4
        for (int j = 0; j < candidates; ++j) rank += unit[j] < at;
        return rank;
    };
#pragma unroll 1
    for (int i = thread; i < candidates; i += kThreads) {
        const int at = unit[i];
        if (at == kNone) continue;
        const int rank = kept_below(at), to = rank + min(zeros, at - rank);
        values[out + to] = __uint_as_float(bits[i]);
        indices[out + to] = at;
    }
    if constexpr (POSITIVE) {
        // A zero stands where its unit does: all units below it are in the code.
#pragma unroll 1
        for (int at = thread; at < m && zeros > 0; at += kThreads) {
            const int rank = kept_below(at);
            if (at - rank >= zeros || kept_below(at + 1) != rank) continue;
            values[out + at] = 0.0f;
            indices[out + at] = at;
        }
    }
}

/// The rows that were not decided, one after another by each block: all p values into its part of
/// u, and the m best. Bytes: 4 n p of W a row, from L2 where it fits.
template <bool POSITIVE>
__global__ void __launch_bounds__(kThreads, 4)
    screen_throughout_kernel(const int* undecided, const float* x, int64_t x_stride, const float* w,
                             int64_t w_stride, const float* bias, const float* z,
                             const int64_t* z_units, int z_m, int n, int p, int m, float* u,
                             float* values, int64_t* indices) {
    __shared__ BlockSelect select;
    float* mine = u + int64_t(blockIdx.x) * p;
    const auto* raw = reinterpret_cast<const uint32_t*>(mine);
    const bool packs = rows_aligned<uint32_t, kTogether>(raw, 0);
    const KeyOf<uint32_t> key_of{kNanF32};
    const auto keys = [&](int i, int (&key)[kTogether]) {
        keys_of(
            raw, i, p, packs, [&](uint32_t b) { return key_of(selectable<POSITIVE>(b, kNanF32)); },
            key);
    };
    const int rows = undecided[0];
#pragma unroll 1
    for (int r = int(blockIdx.x); r < rows; r += int(gridDim.x)) {
        const int64_t row = undecided[1 + r];
        compute(
            x + row * x_stride, w, w_stride, bias, n, p, [](int i) { return i; },
            [&](int i, float value) { mine[i] = value; });
        __syncthreads();
        for (int i = int(threadIdx.x); i < z_m; i += kThreads)
            mine[z_units[row * z_m + i]] += z[row * z_m + i];
        __syncthreads();
        const Cut cut = block_cut<31>(select, keys, p, m);
        block_for_each(select, keys, p, cut, [&](int i, unsigned keep, int rank) {
#pragma unroll 1
            for (; keep != 0; keep &= keep - 1) {
                const int at = i + __ffs(int(keep)) - 1;
                values[row * m + rank] = __uint_as_float(selectable<POSITIVE>(raw[at], kNanF32));
                indices[row * m + rank] = at;
                ++rank;
            }
        });
        __syncthreads();
    }
}

namespace {

/// Candidates that a row has room for.
int64_t room_of(int64_t m, int64_t z_m) { return 4 * m + 512 + z_m; }

template <bool POSITIVE>
void launch(const ScreenedTopM& a, const Parts& s, cudaStream_t stream) {
    const int n = int(a.n), p = int(a.p), m = int(a.m), z_m = int(a.z_m);
    const int64_t room = room_of(m, z_m), marks = z_m > 0 ? ceil_div(a.p, 32 * kGroup) : 0;
    const char* name = "screen_select_kernel";
    screen_select_kernel<POSITIVE>
        <<<grid_size(a.rows, name), kThreads, size_t(2 * room + marks) * 4, stream>>>(
            s.tops, s.units / kGroup, s.of_units, s.of_rows, a.x, a.x_stride, a.w, a.w_stride,
            a.bias, a.z_values, a.z_indices, z_m, n, p, m, int(room), a.values, a.indices,
            s.undecided);
    launched(name);
    name = "screen_throughout_kernel";
    screen_throughout_kernel<POSITIVE><<<unsigned(s.blocks), kThreads, 0, stream>>>(
        s.undecided, a.x, a.x_stride, a.w, a.w_stride, a.bias, a.z_values, a.z_indices, z_m, n, p,
        m, s.u, a.values, a.indices);
    launched(name);
}

}  // namespace

void select_screened(const ScreenedTopM& a, const Parts& s, cudaStream_t stream) {
    check(cudaMemsetAsync(s.undecided, 0, sizeof(int), stream), "screened_top_m");
    a.positive ? launch<true>(a, s, stream) : launch<false>(a, s, stream);
}

}  // namespace deepl0::cuda
