// Launching kernels: the device at hand, and errors that carry the name of the kernel.
//
// csrc/cuda is free of torch: a function takes device pointers, a stream and workspace, queues its
// kernels on the current device and returns without waiting. It allocates nothing and reads nothing
// back, so it can be captured in a graph. Failures throw std::runtime_error.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace deepl0::cuda {

/// Element types of the GPU kernels; accumulation and selection are float32.
enum class DType : int { f32, f16, bf16 };

inline size_t size_of(DType t) { return t == DType::f32 ? 4 : 2; }

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

/// Call it right after a launch: throws with the name of the kernel.
inline void launched(const char* kernel) { check(cudaGetLastError(), kernel); }

/// What the plans depend on, of the current device.
struct Device {
    int multiprocessors = 0;
    int shared_bytes = 0;  // that one block may use
};

inline Device current_device() {
    int id = 0;
    Device device;
    check(cudaGetDevice(&id), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, id),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id),
          "cudaDeviceGetAttribute");
    return device;
}

/// Lets `kernel` use that much dynamic shared memory beside its static; up to 48 KiB in all nothing
/// needs to be said.
template <class Kernel>
void allow_shared(Kernel kernel, size_t dynamic, size_t fixed, const char* name) {
    if (dynamic + fixed <= (48 << 10)) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(dynamic)),
          name);
}

/// The first dimension of a grid, which holds up to 2^31 - 1 blocks.
inline unsigned grid_size(int64_t blocks, const char* kernel) {
    if (blocks > INT32_MAX) throw std::runtime_error(std::string(kernel) + ": too many rows");
    return unsigned(blocks);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace deepl0::cuda
