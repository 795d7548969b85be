#include "torch/cuda/bindings.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>

namespace deepl0::torch_ops::on_cuda {

namespace {

#ifndef DEEPL0_CUDA_EMULATED
/// torch's current stream of a device. The stable ABI hands out its handle from 2.13 on only; the C
/// shim of libtorch_cuda does in every version.
cudaStream_t current_stream(int32_t device) {
    using GetStream = AOTITorchError(int32_t, void**);
    static const auto get = of_torch_cuda<GetStream>("aoti_torch_get_current_cuda_stream");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get(device, &stream));
    return static_cast<cudaStream_t>(stream);
}
#endif

}  // namespace

void* of_torch_cuda(const char* name) {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library ? dlsym(library, name) : nullptr;
    STD_TORCH_CHECK(found, "this torch has no ", name, ": is it a CUDA build?");
    return found;
}

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
    if (bytes == 0) return nullptr;
    memory_.push_back(empty(like, {int64_t(bytes)}, ScalarType::Byte));
    return mutable_data_of(memory_.back());
}

Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
    int32_t device_type = 0, device = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device));
    std::array<int64_t, 8> strides;
    STD_TORCH_CHECK(shape.size() <= strides.size(), "tensors of more than 8 dimensions");
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
        strides[i] = stride;
        stride *= std::max<int64_t>(1, shape[i]);
    }
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        int64_t(shape.size()), shape.data(), strides.data(),
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type, device,
        &handle));
    Tensor t(handle);
#ifdef DEEPL0_CUDA_EMULATED
    if (t.is_cpu()) fill(t.mutable_data_ptr(), t.numel() * int64_t(t.element_size()));
#endif
    return t;
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

#ifdef DEEPL0_CUDA_EMULATED
namespace {

/// From its first to its last element, kernels may touch a tensor.
void may_touch(const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) {
        if (t.size(i) == 0) return;
        last += (t.size(i) - 1) * t.stride(i);
    }
    on_cuda::may_touch(t.const_data_ptr(), (last + 1) * int64_t(t.element_size()));
}

}  // namespace
#else
static void may_touch(const Tensor&) {}
#endif

const void* data_of(const Tensor& t) {
    may_touch(t);
    return t.const_data_ptr();
}

void* mutable_data_of(const Tensor& t) {
    may_touch(t);
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
    return dense(t);
}

}  // namespace deepl0::torch_ops::on_cuda
