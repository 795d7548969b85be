#include "torch/cuda/bindings.h"

#include <dlfcn.h>

namespace deepl0::torch_ops::on_cuda {

namespace {

#ifndef DEEPL0_CUDA_EMULATED
/// torch's current stream of a device. The stable ABI hands out its handle from 2.13 on only; the C
/// shim of libtorch_cuda does in every version. It is looked up when it is first needed, in the
/// library that torch has loaded, so that this one loads beside a torch without CUDA.
cudaStream_t current_stream(int32_t device) {
    using GetStream = AOTITorchError (*)(int32_t, void**);
    static const auto get = [] {
        void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        return library ? reinterpret_cast<GetStream>(
                             dlsym(library, "aoti_torch_get_current_cuda_stream"))
                       : nullptr;
    }();
    STD_TORCH_CHECK(get,
                    "this torch has no aoti_torch_get_current_cuda_stream: is it a CUDA build?");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get(device, &stream));
    return static_cast<cudaStream_t>(stream);
}
#endif

}  // namespace

Call::Call(const Tensor& t) : Call(t.get_device_index()) {}

Call::Call(int32_t device) {
    begin_call();
#ifndef DEEPL0_CUDA_EMULATED
    guard_.emplace(device);
    // The CUDA runtime is linked statically: it has a current device of its own.
    cuda::check(cudaSetDevice(device), "cudaSetDevice");
    stream_ = current_stream(device);
#else
    (void)device;
    stream_ = current_stream();
#endif
}

void* Call::workspace(const Tensor& like, size_t bytes) {
    memory_.push_back(empty(like, {int64_t(bytes)}, ScalarType::Byte));
    return mutable_data_of(memory_.back());
}

cuda::DType dtype_of(const Tensor& t, const char* name) {
    switch (t.scalar_type()) {
        case ScalarType::Float:
            return cuda::DType::f32;
        case ScalarType::Half:
            return cuda::DType::f16;
        case ScalarType::BFloat16:
            return cuda::DType::bf16;
        default:
            STD_TORCH_CHECK(false, name,
                            " must be float32, float16 or bfloat16 for the CUDA kernels");
    }
}

size_t element_of(const Tensor& t, const char* name) { return cuda::size_of(dtype_of(t, name)); }

namespace {

/// The bytes from the first to the last element of a tensor.
int64_t span_of(const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) {
        if (t.size(i) == 0) return 0;
        last += (t.size(i) - 1) * t.stride(i);
    }
    return (last + 1) * int64_t(t.element_size());
}

}  // namespace

const void* data_of(const Tensor& t) {
    may_touch(t.const_data_ptr(), span_of(t));
    return t.const_data_ptr();
}

void* mutable_data_of(const Tensor& t) {
    may_touch(t.const_data_ptr(), span_of(t));
    return t.mutable_data_ptr();
}

void same_device(const Tensor& first, const Tensor& t, const char* name) {
    STD_TORCH_CHECK(
        t.is_cuda() == first.is_cuda() && t.get_device_index() == first.get_device_index(), name,
        " must be on the device of the other tensors");
}

Tensor like(const Tensor& first, Tensor t, ScalarType type, const char* name) {
    same_device(first, t, name);
    STD_TORCH_CHECK(t.scalar_type() == type, name, " has the wrong dtype");
    return torch::stable::contiguous(t);
}

}  // namespace deepl0::torch_ops::on_cuda
