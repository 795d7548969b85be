// The part of the CUDA runtime that csrc/cuda uses, on the CPU: memory is the process's own, and a
// launch is handed to a callback, which interprets the kernel's PTX. Linked in place of cudart, so
// that the tests run the launchers and the bindings as they are.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Range {
    uint64_t begin, bytes;
};

/// One launch, as the callback sees it; sizes of the arguments stand in the PTX.
struct Launch {
    const char* kernel;
    uint32_t grid[3], block[3];
    uint64_t shared_bytes, shared_allowed;
    void** arguments;
    const Range* ranges;  // what the kernel may touch
    uint64_t range_count;
    const void* stream;
};

using Run = int (*)(const Launch*);

struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};

Run run = nullptr;
std::string error_text;
cudaError_t error = cudaSuccess;
/// Filled while other files are initialised.
std::map<const void*, std::string>& kernels() {
    static std::map<const void*, std::string> all;
    return all;
}

std::map<const void*, int> allowed;
std::vector<Range> ranges;
std::vector<Configuration> configurations;
int multiprocessors = 132, shared_bytes = 232448;
const char* refusal = nullptr;

}  // namespace

/// A callback: what the host does of a call is then all that is done.
EXPORT int emulator_do_nothing(const Launch*) { return 0; }

namespace {

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                   const void* stream) {
    if (run == emulator_do_nothing) return error;
    const auto at = allowed.find(kernel);
    const uint64_t most = at == allowed.end() ? 48 << 10 : at->second;
    const Launch job{kernels().at(kernel).c_str(),
                     {grid.x, grid.y, grid.z},
                     {block.x, block.y, block.z},
                     shared,
                     most,
                     arguments,
                     ranges.data(),
                     ranges.size(),
                     stream};
    if (run == nullptr || run(&job) != 0) error = cudaErrorLaunchFailure;
    return error;
}

}  // namespace

namespace deepl0::torch_ops::on_cuda {

void begin_call() { ranges.clear(); }

void may_touch(const void* data, int64_t bytes) {
    ranges.push_back({reinterpret_cast<uint64_t>(data), uint64_t(bytes)});
}

/// NaN and -1, so that what a kernel forgets to write is not there by chance.
int fill_byte = 0xff;
void fill(void* data, int64_t bytes) { std::memset(data, fill_byte, size_t(bytes)); }

/// One that no launcher can have made up.
cudaStream_t current_stream() { return reinterpret_cast<cudaStream_t>(0x57eea3); }

}  // namespace deepl0::torch_ops::on_cuda

EXPORT void emulator_set_run(Run callback) { run = callback; }

#if __has_include(<valgrind/callgrind.h>)
/// Calls it, and callgrind counts and writes down what that takes (bench/host_instructions.py).
EXPORT void emulator_counted(void (*callback)()) {
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
    callback();
    CALLGRIND_DUMP_STATS;
    CALLGRIND_STOP_INSTRUMENTATION;
}
#endif

/// By which new memory is filled; zeros are results that PyTorch's operators take.
EXPORT void emulator_set_fill(int byte) { deepl0::torch_ops::on_cuda::fill_byte = byte; }

EXPORT void emulator_set_device(int processors, int shared) {
    multiprocessors = processors;
    shared_bytes = shared;
}

/// Why the device runs no kernels, or null.
EXPORT void emulator_set_refusal(const char* text) { refusal = text; }

/// The text of the error that the next cudaGetLastError reports.
EXPORT void emulator_set_error(const char* text) { error_text = text; }

EXPORT void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}

EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*,
                                   uint3*, dim3*, dim3*, int*) {
    kernels()[host] = name;
}

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                            cudaStream_t stream) {
    configurations.push_back({grid, block, shared, stream});
    return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared,
                                              void* stream) {
    const Configuration c = configurations.back();
    configurations.pop_back();
    *grid = c.grid;
    *block = c.block;
    *shared = c.shared;
    *static_cast<cudaStream_t*>(stream) = c.stream;
    return cudaSuccess;
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
    *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
    return cudaSuccess;
}

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                      size_t shared, cudaStream_t stream) {
    return launch(kernel, grid, block, arguments, shared, stream);
}

EXPORT cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments,
                                    size_t shared, cudaStream_t stream) {
    return launch(host, grid, block, arguments, shared, stream);
}

EXPORT cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
    if (value > shared_bytes) return cudaErrorInvalidValue;
    allowed[host] = value;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetLastError() {
    const cudaError_t last = error;
    error = cudaSuccess;
    return last;
}

EXPORT const char* cudaGetErrorString(cudaError_t code) {
    if (code == cudaErrorNoKernelImageForDevice) return refusal;
    return code == cudaErrorLaunchFailure ? error_text.c_str() : "error";
}

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
    return refusal == nullptr ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

namespace {

bool is_known(const void* data, size_t bytes) {
    const auto begin = reinterpret_cast<uint64_t>(data);
    for (const Range& r : ranges)
        if (r.begin <= begin && begin + bytes <= r.begin + r.bytes) return true;
    return bytes == 0;
}

/// Of a tensor without data: recorded like a launch.
cudaError_t recorded(const char* name, size_t bytes, cudaStream_t stream) {
    const Launch job{name, {1, 1, 1}, {1, 1, 1}, bytes, bytes, nullptr, nullptr, 0, stream};
    return run != nullptr && run(&job) == 0 ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace

EXPORT cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
    if (data == nullptr) return recorded("memset", bytes, stream);
    if (!is_known(data, bytes)) return cudaErrorInvalidValue;
    std::memset(data, value, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    if (kind != cudaMemcpyDeviceToDevice) return cudaErrorInvalidValue;  // the host is not read
    if (to == nullptr) return recorded("memcpy", bytes, stream);
    if (!is_known(to, bytes) || !is_known(from, bytes)) return cudaErrorInvalidValue;
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaSetDevice(int) { return cudaSuccess; }

EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount ? multiprocessors : shared_bytes;
    return cudaSuccess;
}
