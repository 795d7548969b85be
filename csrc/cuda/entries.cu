// The kernels of entries.h: an entry a thread.
#include "element.cuh"
#include "entries.h"

namespace deepl0::cuda {

constexpr int kThreads = 256;

__device__ inline int64_t thread_at() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_entries_kernel(const typename T::Bits* grad, int64_t row_stride, int64_t column_stride,
                        const typename T::Bits* values, int64_t entries, int m, float* out) {
    const int64_t e = thread_at();
    if (e >= entries) return;
    const bool kept = !values || T::value(values[e]) != 0.0f;
    out[e] = kept ? T::value(grad[e / m * row_stride + e % m * column_stride]) : 0.0f;
}

template <class T>
__global__ void __launch_bounds__(kThreads) round_entries_kernel(float* values, int64_t entries) {
    const int64_t e = thread_at();
    if (e < entries) values[e] = T::value(T::rounded(values[e]));
}

__global__ void __launch_bounds__(kThreads)
    add_entries_kernel(const float* values, const int64_t* indices, int64_t entries, int m,
                       int64_t p, float* out) {
    const int64_t e = thread_at();
    if (e >= entries) return;
    const int64_t index = indices[e];
    if (index < 0 || index >= p) __trap();
    out[e / m * p + index] += values[e];
}

__global__ void __launch_bounds__(kThreads)
    entries_at_kernel(const float* dense, const int64_t* indices, const float* values,
                      int64_t entries, int m, int64_t p, float* out) {
    const int64_t e = thread_at();
    if (e >= entries) return;
    const int64_t index = indices[e];
    if (index < 0 || index >= p) __trap();
    out[e] = values && values[e] == 0.0f ? 0.0f : dense[e / m * p + index];
}

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    append_column_kernel(const Bits* in, int64_t in_stride, int64_t entries, int columns,
                         const Bits* column, Bits one, int width, Bits* out) {
    const int64_t e = thread_at();
    if (e >= entries) return;
    const int64_t row = e / width;
    const int at = int(e % width);
    Bits value = Bits(0);
    if (at < columns)
        value = in[row * in_stride + at];
    else if (at == columns)
        value = column ? column[row] : one;
    out[e] = value;
}

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    gather_columns_kernel(const Bits* in, int64_t in_stride, int rows, int64_t columns,
                          const int64_t* indices, int64_t elements, Bits* out, int64_t* order) {
    const int64_t at = thread_at();
    if (at >= elements) return;
    const int64_t e = at / rows, i = at % rows, index = indices[e];
    if (index < 0 || index >= columns) __trap();
    out[at] = in[i * in_stride + index];
    if (i == 0) order[e] = e;
}

namespace {

unsigned blocks_of(int64_t threads, const char* name) {
    return grid_size(ceil_div(threads, kThreads), name);
}

}  // namespace

void copy_entries(DType dtype, const void* grad, int64_t row_stride, int64_t column_stride,
                  const void* values, int64_t rows, int64_t m, float* out, cudaStream_t stream) {
    const int64_t entries = rows * m;
    if (entries == 0) return;
    const char* name = "copy_entries_kernel";
    const auto run = [&](auto of) {
        using T = decltype(of);
        using Bits = typename T::Bits;
        copy_entries_kernel<T><<<blocks_of(entries, name), kThreads, 0, stream>>>(
            static_cast<const Bits*>(grad), row_stride, column_stride,
            static_cast<const Bits*>(values), entries, int(m), out);
        launched(name);
    };
    if (dtype == DType::f32) return run(F32());
    if (dtype == DType::f16) return run(F16());
    run(BF16());
}

void round_entries(DType dtype, float* values, int64_t count, cudaStream_t stream) {
    if (count == 0) return;
    const char* name = "round_entries_kernel";
    const auto kernel =
        dtype == DType::f16 ? round_entries_kernel<F16> : round_entries_kernel<BF16>;
    kernel<<<blocks_of(count, name), kThreads, 0, stream>>>(values, count);
    launched(name);
}

void add_entries(const float* values, const int64_t* indices, int64_t rows, int64_t m, int64_t p,
                 float* out, cudaStream_t stream) {
    const int64_t entries = rows * m;
    if (entries == 0) return;
    const char* name = "add_entries_kernel";
    add_entries_kernel<<<blocks_of(entries, name), kThreads, 0, stream>>>(values, indices, entries,
                                                                          int(m), p, out);
    launched(name);
}

void entries_at(const float* dense, const int64_t* indices, const float* values, int64_t rows,
                int64_t m, int64_t p, float* out, cudaStream_t stream) {
    const int64_t entries = rows * m;
    if (entries == 0) return;
    const char* name = "entries_at_kernel";
    entries_at_kernel<<<blocks_of(entries, name), kThreads, 0, stream>>>(dense, indices, values,
                                                                         entries, int(m), p, out);
    launched(name);
}

void append_column(DType dtype, const void* in, int64_t in_stride, int64_t rows, int64_t columns,
                   const void* column, int64_t width, void* out, cudaStream_t stream) {
    if (rows == 0) return;
    const char* name = "append_column_kernel";
    const auto run = [&](auto one) {
        using Bits = decltype(one);
        append_column_kernel<Bits><<<blocks_of(rows * width, name), kThreads, 0, stream>>>(
            static_cast<const Bits*>(in), in_stride, rows * width, int(columns),
            static_cast<const Bits*>(column), one, int(width), static_cast<Bits*>(out));
        launched(name);
    };
    if (dtype == DType::f32) return run(uint32_t(0x3f800000));
    run(uint16_t(dtype == DType::f16 ? 0x3c00 : 0x3f80));
}

void gather_columns(size_t element, const void* in, int64_t in_stride, int64_t rows,
                    int64_t columns, const int64_t* indices, int64_t entries, void* out,
                    int64_t* order, cudaStream_t stream) {
    if (entries == 0 || rows == 0) return;
    const char* name = "gather_columns_kernel";
    const auto run = [&](auto of) {
        using Bits = decltype(of);
        gather_columns_kernel<Bits><<<blocks_of(entries * rows, name), kThreads, 0, stream>>>(
            static_cast<const Bits*>(in), in_stride, int(rows), columns, indices, entries * rows,
            static_cast<Bits*>(out), order);
        launched(name);
    };
    element == 4 ? run(uint32_t()) : run(uint16_t());
}

}  // namespace deepl0::cuda
